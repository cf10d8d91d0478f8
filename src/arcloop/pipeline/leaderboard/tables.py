"""A leaderboard as CSV, as a table on the terminal, and as a page of Markdown."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence

from rich.table import Table

from arcloop.pipeline.leaderboard.board import Board
from arcloop.pipeline.leaderboard.jobs import ABOUT_THE_SWEEP, SEED
from arcloop.pipeline.leaderboard.settings import Estimate, Setting, shown, shown_key

_MOST_ROWS = 30


def settings_csv(board: Board) -> bytes:
    """Return a row for each setting, the best first: mean, half width of the interval, seeds."""
    metrics = list(dict.fromkeys(name for setting in board.settings for name in setting.metrics))
    names = [board.monitor, *metrics]
    header = [*board.keys, "jobs", "finished"]
    header += [column for name in names for column in (name, f"{name}_ci95")]
    rows = []
    for setting in board.settings:
        estimates = [setting.objective, *(setting.metrics.get(name) for name in metrics)]
        row: list[object] = [*setting.values.values(), len(setting.jobs), setting.finished]
        for estimate in estimates:
            row += ["", ""] if estimate is None else [estimate.mean, estimate.half_width]
        rows.append(row)
    return _csv(header, rows)


def jobs_csv(board: Board) -> bytes:
    """Return a row for each job, failed ones with the reason."""
    keys = [*board.keys, *([SEED] if any(SEED in job.overrides for job in board.jobs) else [])]
    metrics = list(dict.fromkeys(name for job in board.jobs for name in job.metrics))
    header = ["folder", *keys, board.monitor, *metrics, "failure"]
    return _csv(
        header,
        [
            [job.folder.name, *(job.value(key) for key in keys), job.objective,
             *(job.metrics.get(name) for name in metrics), job.failure]
            for job in board.jobs
        ],
    )  # fmt: skip


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def terminal_table(board: Board, width: int) -> Table:
    """Return the best settings as a table for a terminal.

    Args:
        board: What to show.
        width: Characters in a line; as many metrics are shown as have room.
    """
    table = Table(title=str(board.folder), title_justify="left")
    table.add_column("", justify="right")
    for key in board.keys:
        table.add_column(shown_key(key), min_width=6)
    table.add_column("seeds", justify="right", min_width=6)
    room = max(1, (width - 32 - 10 * len(board.keys)) // 20)
    columns = board.columns[:room]
    for name in (f"{board.monitor}, ranks", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for number, setting in enumerate(board.settings[:_MOST_ROWS], start=1):
        table.add_row(
            str(number),
            *map(shown, setting.values.values()),
            seeds(setting),
            _text(setting.objective),
            *(_text(setting.metrics.get(name)) for name in columns),
        )
    hidden = len(board.settings) - _MOST_ROWS
    if hidden > 0:
        table.caption = f"and {hidden} more, see leaderboard.csv"
    return table


def seeds(setting: Setting) -> str:
    """Return how many jobs are finished, and of how many, if not all."""
    finished, jobs = setting.finished, len(setting.jobs)
    return str(jobs) if finished == jobs else f"{finished} of {jobs}"


def _text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def markdown_page(board: Board) -> str:
    """Return the leaderboard as a page of Markdown, each row with the command that made it."""
    columns = ["", *(shown_key(key) for key in board.keys), "seeds", board.monitor, *board.columns]
    lines = [
        "# Results",
        "",
        "Written by `make results`; every row is made by the command of the same number below.",
        f"Mean and 95% confidence interval over seeds (Student's t). `{board.monitor}` is of val,",
        "which selects the checkpoint and ranks the rows; all other columns are of query, which",
        "judges and which nothing was tuned on.",
        "",
        *(f"- {fact}" for fact in board.facts),
        "",
        _row(columns),
        _row(
            [
                "---:",
                *("---" for _ in board.keys),
                *("---:" for _ in columns[len(board.keys) + 1 :]),
            ]
        ),
    ]
    for number, setting in enumerate(board.settings, start=1):
        estimates = [setting.objective, *(setting.metrics.get(name) for name in board.columns)]
        values = [shown(value) for value in setting.values.values()]
        lines.append(_row([str(number), *values, seeds(setting), *map(_text, estimates)]))
    failed = [job for job in board.jobs if job.failure is not None]
    if failed:
        lines += ["", "Without a result:", ""]
        lines += [f"- `{j.folder.name}`: {(j.failure or '').splitlines()[0]}" for j in failed]
    lines += ["", "```console"]
    lines += [
        f"{command(board, setting)}  # {number}"
        for number, setting in enumerate(board.settings, start=1)
    ]
    return "\n".join([*lines, "```", ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def command(board: Board, setting: Setting) -> str:
    """Return the command that makes the jobs of a setting, and takes those that are there.

    Every key that named the jobs' folders is swept in it, be it over one value, as choice(...): so
    the folders are the same.
    """
    first = setting.jobs[0]
    swept = first.swept or (*board.keys, SEED)
    numbers = ",".join(job.overrides[SEED] for job in setting.jobs if SEED in job.overrides)
    words = []
    for override in first.given:
        key, _, value = override.partition("=")
        name = key.lstrip("+~")
        if name.startswith(ABOUT_THE_SWEEP):
            continue
        if name == SEED and "," in numbers:
            words.append(f"{key}={numbers}")
        else:
            words.append(f"{key}=choice({value})" if name in swept else override)
    return shlex.join(["arcloop", "train", "-m", *words, f"hydra.sweep.dir={board.folder}"])

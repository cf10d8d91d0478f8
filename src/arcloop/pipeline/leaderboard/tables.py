"""A leaderboard as CSV, terminal table and Markdown page."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from arcloop.pipeline.leaderboard.jobs import SEED, SWEEP_KEYS, JobResult, read_jobs
from arcloop.pipeline.leaderboard.settings import (
    Estimate,
    Setting,
    group_by_setting,
    short_key,
    short_value,
)

_MAX_ROWS = 30
_COLUMNS = ("top1", "recall_at_5", "map_at_r", "eer", "tar_at_far_1e-3")


@dataclass(frozen=True)
class Board:
    """The jobs of a sweep and the ranking of their settings.

    Attributes:
        folder: Folder of the sweep.
        jobs: All jobs, ordered by folder name.
        keys: Varied keys, without the seed.
        settings: Settings, best objective first.
        monitor: Name of the objective, a metric of the val split.
    """

    folder: Path
    jobs: Sequence[JobResult]
    keys: Sequence[str]
    settings: Sequence[Setting]
    monitor: str

    @classmethod
    def of(cls, folder: Path) -> Board:
        """Read the jobs of a sweep and rank them.

        Raises:
            ArtifactError: The folder contains no jobs.
        """
        jobs = read_jobs(folder)
        keys, settings = group_by_setting(jobs)
        monitors = [job.monitor for job in jobs if job.monitor]
        return cls(folder, jobs, keys, settings, monitors[0] if monitors else "objective")

    @property
    def failed(self) -> list[JobResult]:
        """Jobs that have no result."""
        return [job for job in self.jobs if job.failure is not None]

    @property
    def columns(self) -> list[str]:
        """Metrics of the query split to show, among those that were recorded."""
        return [n for n in _COLUMNS if any(n in setting.metrics for setting in self.settings)]

    @property
    def facts(self) -> list[str]:
        """Lines that describe data, epochs, device and versions of the finished jobs."""
        runs = [job for job in self.jobs if job.config]
        if not runs:
            return []

        def distinct(values: Sequence[object]) -> str:
            return ", ".join(sorted({str(value) for value in values}))

        trainers = [job.config["trainer"] for job in runs]
        return [
            f"data: {distinct([job.config['data']['name'] for job in runs])}",
            f"epochs: {distinct([trainer['max_epochs'] for trainer in trainers])}",
            f"device: {distinct([trainer['accelerator'] for trainer in trainers])}, "
            + distinct([trainer["precision"] for trainer in trainers]),
            f"torch: {distinct([job.code['packages'].get('torch') for job in runs])}",
            f"git: {distinct([str(job.code['git'])[:10] for job in runs])}",
        ]


def settings_csv(board: Board) -> bytes:
    """Return CSV with one row per setting: mean, half width of the interval and seed counts."""
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
    """Return CSV with one row per job; failed jobs have a reason."""
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
    """Return a terminal table of the best settings.

    Args:
        board: The leaderboard.
        width: Width of the terminal in characters; it limits the number of metric columns.
    """
    table = Table(title=str(board.folder), title_justify="left")
    table.add_column("", justify="right")
    for key in board.keys:
        table.add_column(short_key(key), min_width=6)
    table.add_column("seeds", justify="right", min_width=6)
    room = max(1, (width - 32 - 10 * len(board.keys)) // 20)
    columns = board.columns[:room]
    for name in (f"{board.monitor} (ranking)", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for number, setting in enumerate(board.settings[:_MAX_ROWS], start=1):
        table.add_row(
            str(number),
            *map(short_value, setting.values.values()),
            seed_count(setting),
            _text(setting.objective),
            *(_text(setting.metrics.get(name)) for name in columns),
        )
    hidden = len(board.settings) - _MAX_ROWS
    if hidden > 0:
        table.caption = f"{hidden} more in leaderboard.csv"
    return table


def seed_count(setting: Setting) -> str:
    """Return the number of finished jobs, and the total if some are missing."""
    finished, jobs = setting.finished, len(setting.jobs)
    return str(jobs) if finished == jobs else f"{finished} of {jobs}"


def _text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def markdown_page(board: Board) -> str:
    """Return the leaderboard as a Markdown page, with the command that reproduces each row."""
    columns = ["", *(short_key(key) for key in board.keys), "seeds", board.monitor, *board.columns]
    lines = [
        "# Results",
        "",
        "Written by `make results`. The command with the same number below reproduces a row.",
        "Values are means with 95% confidence intervals over seeds (Student's t).",
        f"`{board.monitor}` is measured on val, which selects the checkpoint and ranks the rows.",
        "All other columns are measured on query, which is used for evaluation only.",
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
        values = [short_value(value) for value in setting.values.values()]
        lines.append(_row([str(number), *values, seed_count(setting), *map(_text, estimates)]))
    failed = [job for job in board.jobs if job.failure is not None]
    if failed:
        lines += ["", "Jobs without a result:", ""]
        lines += [f"- `{j.folder.name}`: {(j.failure or '').splitlines()[0]}" for j in failed]
    lines += ["", "```console"]
    lines += [
        f"{rerun_command(board, setting)}  # {number}"
        for number, setting in enumerate(board.settings, start=1)
    ]
    return "\n".join([*lines, "```", ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def rerun_command(board: Board, setting: Setting) -> str:
    """Return the command that runs the jobs of a setting and reuses finished ones.

    The folder of a job is named after the swept keys. So the command sweeps over every swept key,
    also over a single value, as `choice(...)`.
    """
    first = setting.jobs[0]
    swept = first.swept or (*board.keys, SEED)
    numbers = ",".join(job.overrides[SEED] for job in setting.jobs if SEED in job.overrides)
    words = []
    for override in first.given:
        key, _, value = override.partition("=")
        name = key.lstrip("+~")
        if name.startswith(SWEEP_KEYS):
            continue
        if name == SEED and "," in numbers:
            words.append(f"{key}={numbers}")
        else:
            words.append(f"{key}=choice({value})" if name in swept else override)
    return shlex.join(["arcloop", "train", "-m", *words, f"hydra.sweep.dir={board.folder}"])

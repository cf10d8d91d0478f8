"""Rows of a leaderboard: on the terminal, in Markdown and in CSV files."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from arcloop.artifacts.metrics import is_pair_list_accuracy
from arcloop.errors import ConfigError
from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.plots import short_key, short_value
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.results import SEED, SWEEP_KEYS, JobResult, as_number
from arcloop.pipeline.leaderboard.setting import Setting, lower_is_better

if TYPE_CHECKING:
    from rich.table import Table

LIKE_BEST = "≈"
"""Marks a setting that the paired test does not distinguish from the best one."""
_MAX_ROWS = 30
_MIN_VALUE, _MAX_VALUE = 6, 24  # characters of a value on the terminal
_GAP = 2  # characters between two columns
_COLUMNS = ("top1", "recall_at_5", "map_at_r", "eer", "tar_at_far_1e-3")
_MEASURED = ("index_recall_at_10", "index_bytes", "search_p50_ms", "images_per_second")
_ON_RUNS = (
    "These jobs trained nothing. Their metrics are measured on the query split, which is used for"
    " evaluation only: compare the jobs, but select settings by val."
)


def query_columns(ranking: Ranking) -> list[str]:
    """Return the metrics of the query split to show, among those that were recorded."""
    names = (_COLUMNS[0], *_MEASURED, *_COLUMNS[1:]) if ranking.on_runs else _COLUMNS
    recorded = {name for setting in ranking.settings for name in setting.metrics}
    found = [
        *filter(recorded.__contains__, names),
        *filter(is_pair_list_accuracy, sorted(recorded)),
    ]
    if ranking.on_runs and not found:  # sizes of exported files
        found = sorted(recorded)
    return found


def headings(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, or the key itself if two of them have the same last part.

    >>> headings(["head.margin", "head.scale", "optimizer.lr"])
    ['margin', 'scale', 'lr']
    """
    counts = Counter(map(short_key, keys))
    return [short_key(key) if counts[short_key(key)] == 1 else key for key in keys]


def seed_count(setting: Setting) -> str:
    """Return the number of finished jobs, and the total if some are missing."""
    finished = setting.finished
    return f"{finished} of {finished + setting.missing}" if setting.missing else str(finished)


def display_order(ranking: Ranking, column: str | None = None) -> list[int]:
    """Return the positions of the settings to show, ordered by a column.

    Args:
        ranking: The ranking.
        column: A varied key (smallest first), "seeds" (most first), or a metric (best first). None
            keeps the order of the ranking.

    Raises:
        ConfigError: There is no such column.
    """
    if column is None:
        return ranking.shown
    full = dict(zip(headings(ranking.keys), ranking.keys, strict=True))
    key = full.get(column, column)
    names = {name for s in ranking.settings for name in (*s.metrics, *s.val)} | {ranking.monitor}
    if key not in (*ranking.keys, "seeds", *names):
        known = [*ranking.keys, "seeds", ranking.monitor, *query_columns(ranking)]
        raise ConfigError(
            f"the table has no column {column}",
            where="--sort",
            remedy=f"columns: {', '.join(known)}",
        )

    def order(place: int) -> tuple[bool, float, str]:
        setting = ranking.settings[place]
        if key in ranking.keys:
            text = setting.values[key]
            number = as_number(text)
            return number is None, number or 0.0, text or ""
        if key == "seeds":
            return False, -setting.finished, ""
        found = setting.val.get(key) or setting.metrics.get(key)
        found, falling = (
            (setting.objective, ranking.higher_is_better)
            if key == ranking.monitor
            else (found, not lower_is_better(key))
        )
        return found is None, (-found.mean if falling else found.mean) if found else 0.0, ""

    return sorted(ranking.shown, key=order)


def table_rows(ranking: Ranking, columns: Sequence[str], order: Sequence[int]) -> list[list[str]]:
    """Return the cells of settings: rank, values, seeds, objective, second metric, metrics.

    The second metric is left out if no settings are tied.
    """
    rows = []
    for place in order:
        setting = ranking.settings[place]
        estimates = [setting.val.get(ranking.second)] if ranking.second else []
        estimates += [setting.metrics.get(name) for name in columns]
        mark = f" {LIKE_BEST}" if ranking.is_like_best(place) else ""
        rows.append([
            ranking.ranks[place],
            *map(short_value, setting.values.values()),
            seed_count(setting),
            *([] if ranking.on_runs else [f"{setting.objective or '-'}{mark}"]),
            *("-" if estimate is None else str(estimate) for estimate in estimates),
        ])  # fmt: skip
    return rows


def notes(ranking: Ranking) -> list[str]:
    """Return sentences on ties and on differences from the best setting."""
    if ranking.on_runs:
        return [_ON_RUNS]
    found = []
    if tied := ranking.tied:
        text = f"{len(tied)} settings tie at {ranking.monitor} {_mean(tied[0].objective)}"
        if ranking.second:
            text += f"; {ranking.second} of val orders them"
        else:
            text += "; no other recorded metric of val orders them"
        found.append(f"{text}.")
    if count := len(ranking.p_values):
        similar = sum(map(ranking.is_like_best, ranking.p_values))
        found.append(
            f"{LIKE_BEST} not distinguishable from the best setting: {similar} of {count} (paired t"
            " test over shared seeds, p ≥ 0.05 after Holm's correction). The more settings are"
            " compared, the more the value of the best one overstates its quality."
        )
    elif len(ranking.settings) > 1 and ranking.best is not None:
        found.append(
            "No setting shares two seeds with the best one, so it is unknown which differences are"
            " more than the variation between seeds; add seed=0,1,2."
        )
    return found


def _mean(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.mean:.4f}"


def shorten(text: str, length: int) -> str:
    """Shorten a text in the middle.

    >>> shorten("/data/pictures/birds", 11), shorten("0.2", 11)
    ('/data…birds', '0.2')
    """
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def terminal_table(ranking: Ranking, width: int, column: str | None = None) -> Table:
    """Return a table of the settings that fits into a width.

    Columns of the query split are left out first, then values are shortened. The values of many
    keys share one column.

    Args:
        ranking: The ranking.
        width: Characters in a line.
        column: Column that orders the rows, see `display_order`.
    """
    from rich.table import Table

    order = display_order(ranking, column)
    metrics = query_columns(ranking)
    rows = table_rows(ranking, metrics, order[:_MAX_ROWS])
    count = len(ranking.keys)
    names = ["", *headings(ranking.keys), "seeds", *([] if ranking.on_runs else [ranking.monitor])]
    least_columns = len(names)
    names += [*([ranking.second] if ranking.second else []), *metrics]
    needed = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
    values = [min(size, _MAX_VALUE) for size in needed[1 : 1 + count]]
    needed[1 : 1 + count] = values
    visible = len(names)
    while visible > least_columns and sum(needed[:visible]) + _GAP * (visible - 1) > width:
        visible -= 1
    room = width - needed[0] - sum(needed[1 + count : visible]) - _GAP * (visible - 1)
    least = [_least_width(cells) for cells in list(zip(*rows, strict=True))[1 : 1 + count]]
    while sum(values) > room and any(v > low for v, low in zip(values, least, strict=True)):
        excess = [size - low for size, low in zip(values, least, strict=True)]
        values[excess.index(max(excess))] -= 1
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column("", justify="right", no_wrap=True)
    together = sum(values) > room
    if together:
        table.add_column("setting", overflow="fold")
    else:
        for name, size in zip(names[1 : 1 + count], values, strict=True):
            table.add_column(shorten(name, size), no_wrap=True)
    for name in names[1 + count : visible]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        pairs = list(zip(names[1 : 1 + count], row[1 : 1 + count], strict=True))
        cells = [shorten(text, size) for (_, text), size in zip(pairs, values, strict=True)]
        if together:
            cells = [" ".join(f"{name}={shorten(text, _MAX_VALUE)}" for name, text in pairs)]
        table.add_row(row[0], *cells, *row[1 + count : visible])
    if (hidden := len(order) - len(rows)) > 0:
        table.caption = f"{hidden} more in leaderboard.csv"
    return table


def _least_width(cells: Sequence[str]) -> int:
    """Return the least width of a column of values: numbers are never shortened."""
    numbers = [len(cell) for cell in cells if as_number(cell) is not None]
    return max([_MIN_VALUE, *numbers])


def setting_rows(ranking: Ranking) -> Iterable[Mapping[str, object]]:
    """Yield a row per setting: rank, seed counts, mean and half width of each metric's interval."""
    for place, setting in enumerate(ranking.settings):
        scores: dict[str, object] = {}
        val = {name: e for name, e in setting.val.items() if name != ranking.monitor}
        for name, estimate in (
            (ranking.monitor, setting.objective), *val.items(), *setting.metrics.items()
        ):  # fmt: skip
            scores[name] = estimate and estimate.mean
            scores[f"{name}_ci95"] = estimate and estimate.half_width
        counts = {"jobs": len(setting.jobs), "finished": setting.finished}
        counts["missing"] = setting.missing
        p = {"p_value": ranking.p_values.get(place)}
        yield {"rank": ranking.ranks[place], **setting.values, **counts, **p, **scores}


def job_rows(ranking: Ranking) -> list[dict[str, object]]:
    """Return a row per job: folder, state, values, metrics of val and query, duration, paths."""
    swept = dict.fromkeys(key for job in ranking.jobs for key in job.swept)
    keys = dict.fromkeys((*ranking.keys, *swept))
    if any(SEED in job.overrides for job in ranking.jobs):
        keys[SEED] = None
    names = [key for key in keys if not key.startswith(SWEEP_KEYS)]
    return [
        {
            "folder": job.folder.name,
            "state": job.state,
            **{key: job.value(key) for key in names},
            ranking.monitor: job.objective,
            **{name: value for name, value in job.val.items() if name != ranking.monitor},
            **job.metrics,
            "duration_s": job.duration_s,
            "failure": _reason(job),
            "run_dir": str(job.folder),
            "report": _report(job),
        }
        for job in ranking.jobs
    ]


def _reason(job: JobResult) -> str | None:
    if job.pruned is not None:
        return f"pruned after epoch {job.pruned.epoch} at {job.pruned.value:.4f}"
    return job.failure


def _report(job: JobResult) -> str | None:
    report = job.folder / "evaluation/report.html"
    return str(report) if report.is_file() else None


def encode_csv(rows: Iterable[Mapping[str, object]]) -> bytes:
    """Return rows as a CSV file; its columns are the keys of all rows."""
    text, rows = io.StringIO(), list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()

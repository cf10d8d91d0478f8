"""`arcloop leaderboard SWEEP_DIR`: rank the jobs of a sweep; print and write the result."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rich.table import Table

from arcloop.artifacts.atomic import write_bytes
from arcloop.config.composition import quote_override
from arcloop.display.html import data_uri, render_template
from arcloop.display.plotting import encode_png
from arcloop.display.terminal import result_console
from arcloop.errors import write_error
from arcloop.pipeline.sweeps.plots import draw, short_key, short_value
from arcloop.pipeline.sweeps.results import SEED, SWEEP_KEYS, Ranking, Setting

_PAGE = Path(__file__).with_name("leaderboard.html.j2")
_MARKDOWN = _PAGE.with_name("leaderboard.md.j2")
_MAX_ROWS = 30
_COLUMNS = ("top1", "recall_at_5", "map_at_r", "eer", "tar_at_far_1e-3")


def leaderboard(arguments: Sequence[str]) -> int:
    """Print the leaderboard of a sweep and write it into the sweep's folder; returns 0.

    Raises:
        ArtifactError: The folder contains no jobs of a sweep.
        ResourceError: A file cannot be written.
    """
    parser = argparse.ArgumentParser("arcloop leaderboard", description=__doc__)
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="e.g. runs/sweeps/mnist")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    options = parser.parse_args(arguments)
    ranking = Ranking.of(Path(options.sweep_dir))
    files = render(ranking)
    if options.markdown:
        files[Path(options.markdown)] = markdown_page(ranking).encode()
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        except OSError as cause:
            raise write_error(path, cause) from cause
    for figure in ranking.folder.glob("leaderboard-*.png"):
        if figure not in files:  # a figure of an earlier leaderboard that no longer applies
            figure.unlink()
    console = result_console()
    console.print(_terminal_table(ranking, console.width))
    for job in ranking.failed:
        reason = (job.failure or "").partition("\n")[0]
        console.print(f"no result: {job.folder.name}: {reason}", soft_wrap=True)
    for path in files:
        if path.suffix in (".html", ".md") or str(path) == options.markdown:
            console.print(f"written: {path}", soft_wrap=True)
    return 0


def render(ranking: Ranking) -> dict[Path, bytes]:
    """Return the files of a leaderboard: path -> content.

    The page is last; it has no external files except the reports of the jobs that it links.
    """
    figures = {name: encode_png(figure) for name, figure in draw(ranking).items()}
    best = ranking.settings[0] if ranking.settings[0].objective else None
    page = render_template(
        _PAGE,
        filters={"short_value": short_value, "short_key": short_key},
        board=ranking,
        columns=_columns(ranking),
        facts=_facts(ranking),
        best=best,
        command=rerun_command(ranking, best) if best else None,
        seed_count=_seed_count,
        most_seeds=max(setting.finished for setting in ranking.settings),
        report_link=_report_link,
        figures={name: data_uri(content, "png") for name, content in figures.items()},
    )
    folder = ranking.folder
    return {
        folder / "leaderboard.csv": _csv(_setting_rows(ranking)),
        folder / "leaderboard-jobs.csv": _csv(_job_rows(ranking)),
        **{folder / f"leaderboard-{name}.png": content for name, content in figures.items()},
        folder / "leaderboard.html": page.encode(),
    }


def _report_link(folder: Path) -> str | None:
    """Return the relative link to the report of a job, or None if it has none."""
    exists = (folder / "evaluation/report.html").is_file()
    return f"{quote(folder.name)}/evaluation/report.html" if exists else None


def _columns(ranking: Ranking) -> list[str]:
    """Return the metrics of the query split to show, among those that were recorded."""
    return [n for n in _COLUMNS if any(n in setting.metrics for setting in ranking.settings)]


def _facts(ranking: Ranking) -> list[str]:
    """Return lines that describe data, epochs, device and versions of the finished jobs."""
    runs = [job for job in ranking.jobs if job.code]
    facts = {
        "data": [name for job in runs if (name := job.value("data.name"))],
        "epochs": [job.config["trainer"]["max_epochs"] for job in runs],
        "device": ["{accelerator}, {precision}".format(**job.config["trainer"]) for job in runs],
        "torch": [job.code["packages"].get("torch") for job in runs],
        "git": [str(job.code["git"])[:10] for job in runs],
    }
    return [f"{name}: {', '.join(sorted(set(map(str, v))))}" for name, v in facts.items() if v]


def _setting_rows(ranking: Ranking) -> Iterable[Mapping[str, object]]:
    """Yield a row per setting: seed counts, mean and half width of the interval of each metric."""
    for setting in ranking.settings:
        scores: dict[str, object] = {}
        for name, estimate in ((ranking.monitor, setting.objective), *setting.metrics.items()):
            scores[name] = estimate and estimate.mean
            scores[f"{name}_ci95"] = estimate and estimate.half_width
        counts = {"jobs": len(setting.jobs), "finished": setting.finished}
        yield {**setting.values, **counts, **scores}


def _job_rows(ranking: Ranking) -> Iterable[Mapping[str, object]]:
    """Yield a row per job; failed jobs have a reason."""
    seeds = any(SEED in job.overrides for job in ranking.jobs)
    for job in ranking.jobs:
        values = {key: job.value(key) for key in (*ranking.keys, *([SEED] if seeds else []))}
        scores = {ranking.monitor: job.objective, "failure": job.failure, **job.metrics}
        yield {"folder": job.folder.name, **values, **scores}


def _csv(rows: Iterable[Mapping[str, object]]) -> bytes:
    text, rows = io.StringIO(), list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _texts(ranking: Ranking, columns: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table: rank, values, seeds, objective and these metrics."""
    rows = []
    for number, setting in enumerate(ranking.settings, start=1):
        estimates = [setting.objective, *(setting.metrics.get(name) for name in columns)]
        texts = ["-" if estimate is None else str(estimate) for estimate in estimates]
        values = map(short_value, setting.values.values())
        rows.append([str(number), *values, _seed_count(setting), *texts])
    return rows


def _seed_count(setting: Setting) -> str:
    """Return the number of finished jobs, and the total if some are missing."""
    finished, jobs = setting.finished, len(setting.jobs)
    return str(jobs) if finished == jobs else f"{finished} of {jobs}"


def _terminal_table(ranking: Ranking, width: int) -> Table:
    """Return a table of the best settings; the width in characters limits the metric columns."""
    room = max(1, (width - 32 - 10 * len(ranking.keys)) // 20)
    columns = _columns(ranking)[:room]
    hidden = len(ranking.settings) - _MAX_ROWS
    caption = f"{hidden} more in leaderboard.csv" if hidden > 0 else None
    table = Table(title=str(ranking.folder), title_justify="left", caption=caption)
    table.add_column("", justify="right")
    for key in ranking.keys:
        table.add_column(short_key(key), min_width=6)
    table.add_column("seeds", justify="right", min_width=6)
    for name in (f"{ranking.monitor} (ranking)", *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _texts(ranking, columns)[:_MAX_ROWS]:
        table.add_row(*row)
    return table


def markdown_page(ranking: Ranking) -> str:
    """Return the leaderboard as a Markdown page, with the command that reproduces each row."""
    columns = _columns(ranking)
    page = render_template(
        _MARKDOWN,
        filters={"short_key": short_key},
        ranking=ranking,
        columns=columns,
        facts=_facts(ranking),
        rows=_texts(ranking, columns),
        commands=[rerun_command(ranking, setting) for setting in ranking.settings],
    )
    return f"{page}\n"


def rerun_command(ranking: Ranking, setting: Setting) -> str:
    """Return the command that runs the jobs of a setting and reuses finished ones.

    The name of a job's folder contains the swept keys. To get the same names, the command sweeps
    over each of these keys, as `choice(...)` if there is a single value.
    """
    first = setting.jobs[0]
    swept = first.swept or (*ranking.keys, SEED)
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
    command = shlex.join(["arcloop", ranking.verb, "-m", *words])
    if ranking.verb == "pipeline":  # its cache finds the finished runs, in any folder
        return command
    return f"{command} {quote_override('hydra.sweep.dir', str(ranking.folder))}"

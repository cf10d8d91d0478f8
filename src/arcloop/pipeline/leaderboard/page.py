"""The files of a leaderboard: the page, the plots, the CSV files and the Markdown table."""

from __future__ import annotations

import shlex
from pathlib import Path
from urllib.parse import quote

from arcloop.config.composition import quote_override
from arcloop.display.html import data_uri, render_template
from arcloop.display.plotting import encode_png
from arcloop.pipeline.leaderboard.plots import draw, short_value
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.results import SEED, SWEEP_KEYS
from arcloop.pipeline.leaderboard.setting import Setting
from arcloop.pipeline.leaderboard.tables import (
    LIKE_BEST,
    display_order,
    encode_csv,
    headings,
    job_rows,
    notes,
    query_columns,
    seed_count,
    setting_rows,
    table_rows,
)

_PAGE = Path(__file__).with_name("leaderboard.html.j2")
_MARKDOWN = _PAGE.with_name("leaderboard.md.j2")


def render(ranking: Ranking) -> dict[Path, bytes]:
    """Return the files of a leaderboard: path -> content.

    The page is last. It is self-contained, except for its links to the reports of the jobs.
    """
    figures = {name: encode_png(figure) for name, figure in draw(ranking).items()}
    best = ranking.best
    page = render_template(
        _PAGE,
        filters={"short_value": short_value},
        board=ranking,
        columns=query_columns(ranking),
        headings=headings(ranking.keys),
        order=display_order(ranking),
        notes=notes(ranking),
        like_best=LIKE_BEST,
        facts=_facts(ranking),
        best=best,
        command=rerun_command(ranking, best) if best else None,
        seed_count=seed_count,
        most_seeds=max((setting.finished for setting in ranking.settings), default=0),
        report_link=_report_link,
        figures={name: data_uri(content, "png") for name, content in figures.items()},
    )
    folder = ranking.folder
    return {
        folder / "leaderboard.csv": encode_csv(setting_rows(ranking)),
        folder / "leaderboard-jobs.csv": encode_csv(job_rows(ranking)),
        **{folder / f"leaderboard-{name}.png": content for name, content in figures.items()},
        folder / "leaderboard.html": page.encode(),
    }


def _report_link(folder: Path) -> str | None:
    """Return the relative link to the report of a job; None if there is no report."""
    exists = (folder / "evaluation/report.html").is_file()
    return f"{quote(folder.name)}/evaluation/report.html" if exists else None


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


def markdown_page(ranking: Ranking) -> str:
    """Return the leaderboard as a Markdown page, with the command that reproduces each row."""
    columns, order = query_columns(ranking), display_order(ranking)
    settings = [ranking.settings[place] for place in order]
    page = render_template(
        _MARKDOWN,
        ranking=ranking,
        headings=headings(ranking.keys),
        columns=[*([ranking.second] if ranking.second else []), *columns],
        facts=_facts(ranking),
        notes=notes(ranking),
        rows=table_rows(ranking, columns, order),
        commands=[rerun_command(ranking, s) for s in settings if not ranking.on_runs],
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

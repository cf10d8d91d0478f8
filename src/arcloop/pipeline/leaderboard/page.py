"""The page of a leaderboard: one file that holds all it shows."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import jinja2

from arcloop.pipeline.leaderboard.board import Board
from arcloop.pipeline.leaderboard.jobs import SEED
from arcloop.pipeline.leaderboard.settings import shown, shown_key
from arcloop.pipeline.leaderboard.tables import command, seeds

_TEMPLATE = "page.html.j2"


def render_page(board: Board, figures: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Args:
        board: What it shows.
        figures: Name -> PNG.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # values, names and errors come from users
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "shown_key": shown_key}
    best = board.settings[0] if board.settings[0].objective else None
    return environment.get_template(_TEMPLATE).render(
        board=board,
        best=best,
        command=command(board, best) if best else None,
        seeds=seeds,
        seed_key=SEED,
        most_seeds=max(setting.finished for setting in board.settings),
        report=_report,
        figures={
            name: f"data:image/png;base64,{base64.b64encode(content).decode()}"
            for name, content in figures.items()
        },
    )


def _report(folder: Path) -> str | None:
    """Return the link from the page to a job's report, if there is one."""
    there = (folder / "evaluation/report.html").is_file()
    return f"{quote(folder.name)}/evaluation/report.html" if there else None

"""The page of a leaderboard: one file that holds all it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from arcloop.display.html import data_uri, render_template
from arcloop.pipeline.leaderboard.board import Board
from arcloop.pipeline.leaderboard.jobs import SEED
from arcloop.pipeline.leaderboard.settings import shown, shown_key
from arcloop.pipeline.leaderboard.tables import command, seeds

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def render_page(board: Board, figures: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Args:
        board: What it shows.
        figures: Name -> PNG.
    """
    best = board.settings[0] if board.settings[0].objective else None
    return render_template(
        _TEMPLATE,
        filters={"shown": shown, "shown_key": shown_key},
        board=board,
        best=best,
        command=command(board, best) if best else None,
        seeds=seeds,
        seed_key=SEED,
        most_seeds=max(setting.finished for setting in board.settings),
        report=_report,
        figures={name: data_uri(content, "png") for name, content in figures.items()},
    )


def _report(folder: Path) -> str | None:
    """Return the link from the page to a job's report, if there is one."""
    there = (folder / "evaluation/report.html").is_file()
    return f"{quote(folder.name)}/evaluation/report.html" if there else None

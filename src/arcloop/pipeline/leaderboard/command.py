"""`arcloop leaderboard SWEEP_DIR`: the jobs of a sweep as tables, a page and plots."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from arcloop.artifacts.atomic import write_bytes
from arcloop.display.plotting import encode_png
from arcloop.errors import unwritable
from arcloop.pipeline.leaderboard import tables
from arcloop.pipeline.leaderboard.board import Board
from arcloop.pipeline.leaderboard.page import render_page
from arcloop.pipeline.leaderboard.plots import draw
from arcloop.pipeline.leaderboard.settings import better_is_more
from arcloop.pipeline.leaderboard.value_plots import Objective

FIGURES = ("settings", "curve", "heat_map", "parallel")


def leaderboard(arguments: Sequence[str]) -> int:
    """Print the leaderboard of a sweep and write it into the sweep's folder; returns 0.

    Raises:
        ArtifactError: There is no job of a sweep in the folder.
        ResourceError: A file cannot be written.
    """
    options = _parser().parse_args(arguments)
    board = Board.of(Path(options.sweep_dir))
    files = render(board)
    if options.markdown:
        files[Path(options.markdown)] = tables.markdown_page(board).encode()
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
        except OSError as cause:
            raise unwritable(path, cause) from cause
    for name in FIGURES:  # of a leaderboard written when there were other jobs
        path = board.folder / f"leaderboard-{name}.png"
        if path not in files:
            path.unlink(missing_ok=True)
    _print(board, options.markdown)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("arcloop leaderboard", description=__doc__)
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="e.g. runs/sweeps/mnist")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    return parser


def render(board: Board) -> dict[Path, bytes]:
    """Return the files of a leaderboard, the page last: it shows what the others hold."""
    objective = Objective(board.monitor, more=better_is_more(board.jobs))
    drawn = draw(board.keys, board.settings, objective)
    figures = {name: encode_png(figure) for name, figure in drawn.items()}
    folder = board.folder
    return {
        folder / "leaderboard.csv": tables.settings_csv(board),
        folder / "leaderboard-jobs.csv": tables.jobs_csv(board),
        **{folder / f"leaderboard-{name}.png": content for name, content in figures.items()},
        folder / "leaderboard.html": render_page(board, figures).encode(),
    }


def _print(board: Board, markdown: str | None) -> None:
    console = Console(highlight=False)
    console.print(tables.terminal_table(board, console.width))
    for job in board.failed:
        reason = (job.failure or "").partition("\n")[0]
        console.print(f"no result: {job.folder.name}: {reason}", markup=False, soft_wrap=True)
    for path in (board.folder / "leaderboard.html", *([markdown] if markdown else [])):
        console.print(f"written: {path}", markup=False, soft_wrap=True)

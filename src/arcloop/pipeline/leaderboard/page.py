"""`arcloop leaderboard SWEEP_DIR`: rank the jobs of a sweep; print and write the result."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from arcloop.artifacts.atomic import write_bytes
from arcloop.display.html import data_uri, render_template
from arcloop.display.plotting import encode_png
from arcloop.errors import write_error
from arcloop.pipeline.leaderboard import tables
from arcloop.pipeline.leaderboard.jobs import SEED
from arcloop.pipeline.leaderboard.plots import draw
from arcloop.pipeline.leaderboard.settings import higher_is_better, short_key, short_value
from arcloop.pipeline.leaderboard.tables import Board
from arcloop.pipeline.leaderboard.value_plots import Objective

FIGURES = ("settings", "curve", "heat_map", "parallel")
_TEMPLATE = Path(__file__).with_name("page.html.j2")


def leaderboard(arguments: Sequence[str]) -> int:
    """Print the leaderboard of a sweep and write it into the sweep's folder; returns 0.

    Raises:
        ArtifactError: The folder contains no jobs of a sweep.
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
            raise write_error(path, cause) from cause
    for name in FIGURES:  # figures of an earlier leaderboard that no longer apply
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
    """Return the files of a leaderboard: path -> content; the page is last, it links the others."""
    objective = Objective(board.monitor, higher_is_better=higher_is_better(board.jobs))
    drawn = draw(board.keys, board.settings, objective)
    figures = {name: encode_png(figure) for name, figure in drawn.items()}
    folder = board.folder
    return {
        folder / "leaderboard.csv": tables.settings_csv(board),
        folder / "leaderboard-jobs.csv": tables.jobs_csv(board),
        **{folder / f"leaderboard-{name}.png": content for name, content in figures.items()},
        folder / "leaderboard.html": render_page(board, figures).encode(),
    }


def render_page(board: Board, figures: Mapping[str, bytes]) -> str:
    """Return the leaderboard as an HTML page without external files.

    Args:
        board: The leaderboard.
        figures: Name -> PNG.
    """
    best = board.settings[0] if board.settings[0].objective else None
    return render_template(
        _TEMPLATE,
        filters={"short_value": short_value, "short_key": short_key},
        board=board,
        best=best,
        command=tables.rerun_command(board, best) if best else None,
        seed_count=tables.seed_count,
        seed_key=SEED,
        most_seeds=max(setting.finished for setting in board.settings),
        report_link=_report_link,
        figures={name: data_uri(content, "png") for name, content in figures.items()},
    )


def _report_link(folder: Path) -> str | None:
    """Return the relative link to the report of a job, or None if it has none."""
    exists = (folder / "evaluation/report.html").is_file()
    return f"{quote(folder.name)}/evaluation/report.html" if exists else None


def _print(board: Board, markdown: str | None) -> None:
    console = Console(highlight=False)
    console.print(tables.terminal_table(board, console.width))
    for job in board.failed:
        reason = (job.failure or "").partition("\n")[0]
        console.print(f"no result: {job.folder.name}: {reason}", markup=False, soft_wrap=True)
    for path in (board.folder / "leaderboard.html", *([markdown] if markdown else [])):
        console.print(f"written: {path}", markup=False, soft_wrap=True)

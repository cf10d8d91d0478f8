"""`arcloop leaderboard SWEEP_DIR`: rank the jobs of a sweep; print and write the result."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from arcloop.artifacts.atomic import write_bytes
from arcloop.display.terminal import print_line, result_console
from arcloop.errors import ArcloopError, write_error
from arcloop.pipeline.leaderboard.best import best_line, write_best
from arcloop.pipeline.leaderboard.page import markdown_page, render
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.results import job_folders
from arcloop.pipeline.leaderboard.tables import notes, terminal_table
from arcloop.pipeline.sweeps.record import RECORD

_MAX_LISTED = 10  # jobs of each state, on the terminal


def leaderboard(arguments: Sequence[str]) -> int:
    """Print the leaderboard of a sweep and write it to the folder of the sweep; return 0.

    Raises:
        ArtifactError: The folder contains no jobs of a sweep.
        ConfigError: An option is invalid, or the jobs have different monitors.
        ResourceError: A file cannot be written.
    """
    parser = argparse.ArgumentParser("arcloop leaderboard", description=__doc__)
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="e.g. runs/sweeps/mnist")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")
    parser.add_argument("--monitor", metavar="KEY", help="rank by another recorded metric of val")
    parser.add_argument("--sort", metavar="KEY", help="order the printed rows by this column")
    parser.add_argument(
        "--where", metavar="CONDITION", action="append", default=[],
        help="only print jobs that meet it, such as 'seed>1'; write no files; can be repeated",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    folder = Path(options.sweep_dir)
    ranking = Ranking.of(folder, monitor=options.monitor, where=options.where)
    console = result_console()
    table = terminal_table(ranking, console.width, options.sort)
    written: list[Path] = []
    if not options.where:
        written = write_leaderboard(ranking)
    if options.markdown:
        written.append(Path(options.markdown))
        _write(written[-1], markdown_page(ranking).encode())
    console.print(str(folder), soft_wrap=True)
    console.print(table)
    for note in notes(ranking):
        console.print(Text(note))
    for text in _unranked(ranking):
        console.print(text, soft_wrap=True)
    if line := best_line(ranking):
        console.print(line, soft_wrap=True)
    for path in written:
        if path.suffix == ".html" or str(path) == options.markdown:
            console.print(f"written: {path}", soft_wrap=True)
    return 0


def _unranked(ranking: Ranking) -> Iterator[str]:
    """Yield lines on the jobs without a result: running, pruned, failed and interrupted."""
    for name, jobs in (("running", ranking.running), ("pruned", ranking.pruned)):
        if jobs:
            yield f"{name}: {len(jobs)} job{'s' if len(jobs) != 1 else ''}"
        for job in jobs[:_MAX_LISTED]:
            end = job.pruned
            after = f": epoch {end.epoch}, {ranking.monitor} {end.value:.4f}" if end else ""
            yield f"  {job.folder.name}{after}"
    for job in ranking.failed:
        yield f"no result: {job.folder.name}: {(job.failure or '').partition(chr(10))[0]}"


def write_leaderboard(ranking: Ranking) -> list[Path]:
    """Write the leaderboard and the best job to the folder of a sweep; return the files.

    Raises:
        ResourceError: A file cannot be written.
    """
    files = render(ranking)
    for path, content in files.items():
        _write(path, content)
    for figure in ranking.folder.glob("leaderboard-*.png"):
        if figure not in files:  # a figure of an earlier leaderboard that no longer applies
            figure.unlink()
    write_best(ranking)
    return list(files)


def finish_sweep(folder: Path) -> None:
    """Write the leaderboard of a sweep that ended, and print its best setting.

    Errors are printed and not raised, because the jobs are complete. Jobs in other folders, which
    `run_dir` sets, are not compared.
    """
    if not any((job / RECORD).is_file() for job in job_folders(folder)):
        return
    try:
        ranking = Ranking.of(folder)
        if ranking.best is None:
            return
        files = write_leaderboard(ranking)
    except ArcloopError as cause:
        print_line(f"no leaderboard was written: {cause}")
        return
    if line := best_line(ranking):
        print_line(line)
    print_line(f"leaderboard: {files[-1]}")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as cause:
        raise write_error(path, cause) from cause

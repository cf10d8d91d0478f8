"""Progress output: Rich bars on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arcloop.distributed.process_group import launched_rank
from arcloop.errors import list_some

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_LINE_SECONDS = 10.0
_LITERAL: Mapping[str, Any] = {"markup": False, "emoji": False, "highlight": False}
"""Prints every text as it is. Names of classes and files can look like markup: [bold], :apple:."""


@functools.cache
def console() -> Console:
    """Return the console for progress, which writes to standard error.

    It is quiet in all processes of a distributed training except rank 0.
    """
    from rich.console import Console

    return Console(stderr=True, quiet=launched_rank() != 0, **_LITERAL)


def result_console(width: int | None = None) -> Console:
    """Return a console for results, which writes to standard output.

    Args:
        width: Number of columns; by default, that of the terminal.
    """
    from rich.console import Console

    return Console(width=width, **_LITERAL)


@contextlib.contextmanager
def track(
    description: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show the progress of a stage: a bar on a terminal, otherwise a line every ten seconds.

    Args:
        description: Name of the stage, e.g. "prepare train".
        total: Total number of units, if known.
        unit: Name of the units, in the plural.

    Yields:
        Function that takes the number of units completed since its last call.
    """
    if console().is_terminal:
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        with _lines(description, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console()) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def _lines(description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _PLAIN_LINE_SECONDS:
            last = now
            of = f" of {total:,}" if total is not None else ""
            print_line(f"{description}: {done:,}{of} {unit}, {now - start:.0f} s")

    yield advance
    seconds = time.monotonic() - start
    rate = f", {done / seconds:,.0f} {unit}/s" if seconds > 0.05 and done else ""
    print_line(f"{description}: {done:,} {unit} in {seconds:.1f} s{rate}")


def print_line(line: str) -> None:
    """Print one line of plain text to the progress console."""
    console().print(line, soft_wrap=True)


def decimals(similarity: float, bound: float) -> int:
    """Return the number of decimals, 3 to 8, from which two similarities differ in print.

    Equal similarities need 3. float32 similarities near 1 differ by 6e-8 or more.

    >>> decimals(0.99997, 1.0), decimals(0.7, 0.8), decimals(0.5, 0.5)
    (5, 3, 3)
    """
    different = (n for n in range(3, 9) if f"{similarity:.{n}f}" != f"{bound:.{n}f}")
    return next(different, 3)


def format_similarity(similarity: float) -> str:
    """Return a similarity with 3 to 8 decimals, as many as distinguish it from 1.

    >>> format_similarity(0.7), format_similarity(0.99997), format_similarity(1.0)
    ('0.700', '0.99997', '1.000')
    """
    return f"{similarity:.{decimals(similarity, 1.0)}f}"


def print_some(title: str, lines: Sequence[str], limit: int = 20) -> None:
    """Print a title and the first lines below it, if there are any."""
    if lines:
        print_line("\n    ".join([title, list_some(lines, limit, "\n    ")]))

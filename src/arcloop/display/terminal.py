"""Progress on the terminal: Rich bars for a person, plain lines for a log."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from arcloop.distributed.process_group import launched_rank

if TYPE_CHECKING:
    from rich.console import Console

_PLAIN_LINE_SECONDS = 10.0


@functools.cache
def console() -> Console:
    """Return the terminal that progress goes to: standard error.

    It is silent in all but the first process of a training in several.
    """
    from rich.console import Console

    return Console(stderr=True, quiet=launched_rank() != 0)


@contextlib.contextmanager
def track(
    description: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show progress of a stage; call the yielded function with the number of units just done.

    Without a terminal, a line at the end and one every ten seconds on the way.

    Args:
        description: What is being done, e.g. "prepare train".
        total: Number of units in all, if known.
        unit: What is counted, in the plural.
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
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(unit),
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
    """Print one line of plain text where the progress goes."""
    console().print(line, markup=False, highlight=False, soft_wrap=True)

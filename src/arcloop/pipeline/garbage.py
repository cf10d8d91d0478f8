"""What Python's collector of cycles need not look at, in a process that is one command."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_uncollected() -> Iterator[None]:
    """Import or build what stays: half a million objects, through which it looks again and again.

    A fifth of the time that torch and Lightning take to be imported.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def leave_to_the_end_of_the_process() -> None:
    """Have nothing looked through any more: the interpreter would, three times, before it ends."""
    gc.freeze()

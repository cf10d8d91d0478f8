"""Memory that is free, back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back_free_memory() -> None:
    """Give the system what malloc keeps for later.

    glibc has a store for each few threads, and what many short-lived ones freed lies in them in
    pieces that the next ones do not fit into: the process grows with every batch, though it holds
    no more. Elsewhere than under glibc this does nothing.
    """
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim

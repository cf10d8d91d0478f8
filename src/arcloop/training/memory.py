"""How a training process takes memory, which makes the same tensors anew at every step."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as in malloc.h
_LARGEST_ON_HEAP = 32 << 20  # what glibc would come to at most
_KEPT_FREE = 1 << 30
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory_between_steps() -> None:
    """Keep what a step frees for the next one, and do not fill what is taken.

    glibc decides by the sizes that it happens to have seen freed whether a tensor comes from the
    heap, and gives back the heap's end: steps then take their memory from the system again, a page
    at a time, and how much a process holds depends on the size of unrelated arrays. Limits that are
    set do not move. Elsewhere than under glibc, or where the environment sets them, they stay.

    Deterministic algorithms would fill all memory that torch takes, lest it be read before it is
    written; nothing here does that, and it costs a twentieth of the default job's step.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN):
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT_FREE)

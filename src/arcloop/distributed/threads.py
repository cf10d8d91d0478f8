"""The number of threads of torch, OpenMP, BLAS and faiss, which changes the rounding of sums."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

VARIABLE = "OMP_NUM_THREADS"


def default_threads(processes: int = 1) -> int:
    """Return the number of threads for `threads=auto`.

    It is `OMP_NUM_THREADS` if that is set. Otherwise it is the number of physical cores that this
    process may use (by its affinity and the CPU limit of its container), divided by the number of
    processes.

    Args:
        processes: Training processes on this machine.
    """
    first = os.environ.get(VARIABLE, "").partition(",")[0]  # a list has one number per level
    if first.isdecimal() and int(first) > 0:
        return int(first)
    from joblib import cpu_count

    return max(1, int(cpu_count(only_physical_cores=True)) // processes)


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Use this number of threads inside the `with` statement.

    Libraries that are loaded later and new processes read it from `OMP_NUM_THREADS`. Lightning
    would otherwise choose another number when it sets up DDP.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before, variable = torch.get_num_threads(), os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(count)
    try:
        with threadpool_limits(count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)
        restore_variable(variable)


def restore_variable(value: str | None) -> None:
    """Set `OMP_NUM_THREADS` to an earlier value; None: it was not set."""
    os.environ.pop(VARIABLE, None)
    if value is not None:
        os.environ[VARIABLE] = value

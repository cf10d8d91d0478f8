"""The number of threads of torch, OpenMP, BLAS and faiss, which changes the rounding of sums."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig

from arcloop.distributed.launcher import count_processes_to_start

VARIABLE = "OMP_NUM_THREADS"


def count_threads(config: DictConfig, run_dir: Path | None, *, is_training: bool) -> int:
    """Return the number of threads of a step: the configured one, or with "auto" that of its run.

    A new run, and a step without a run, use the number of threads for this machine.

    Args:
        config: The config.
        run_dir: Folder of the run; None if the step takes no run.
        is_training: The step trains the run.
    """
    if config.threads != "auto":
        return int(config.threads)
    is_new = is_training and (config.overwrite or str(config.resume).lower() == "false")
    if run_dir is not None and not is_new:
        with contextlib.suppress(OSError, yaml.YAMLError):  # `train` reports a damaged run
            recorded = yaml.safe_load((run_dir / "config.yaml").read_bytes())
            if isinstance(recorded, dict) and isinstance(recorded.get("threads"), int):
                return int(recorded["threads"])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if is_training:
        processes = max(processes, count_processes_to_start(config))
    return default_threads(processes)


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

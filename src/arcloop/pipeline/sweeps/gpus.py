"""The idle GPUs of this machine, and the choice of one for each process of a sweep."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import BaseFileLock

from arcloop.artifacts.atomic import try_lock
from arcloop.errors import ConfigError, ResourceError

_gpu_locks: list[BaseFileLock] = []
"""Locks of the GPUs that this process has reserved until it ends."""


def free_gpus() -> list[str]:
    """Return the ids of idle GPUs among those that CUDA_VISIBLE_DEVICES allows.

    Raises:
        ConfigError: There is no GPU, or all are in use.
    """
    found = _query("--query-gpu=index,uuid")
    if not found:
        raise ConfigError(
            "launcher=gpus needs an NVIDIA GPU, and this machine has none",
            remedy="launcher=joblib runs several jobs on the CPU",
        )
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        wanted = {entry.strip() for entry in allowed.split(",")}
        found = [gpu for gpu in found if wanted & set(gpu)]
    busy = {row[0] for row in _query("--query-compute-apps=gpu_uuid,pid")}
    free = [uuid for _, uuid in found if uuid not in busy]
    if not free:
        raise ConfigError(
            f"all {len(found)} GPUs are in use",
            remedy="wait (see `nvidia-smi`), or set CUDA_VISIBLE_DEVICES to other GPUs",
        )
    return free


def _query(what: str) -> list[list[str]]:
    command = ["nvidia-smi", what, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line]


def reserve_gpu(gpus: Sequence[str]) -> None:
    """Reserve one of these GPUs until this process ends, and make it the only visible GPU.

    Call this before torch initialises CUDA. Further calls in the same process have no effect.

    Args:
        gpus: Ids of the GPUs to choose from.

    Raises:
        ResourceError: Other processes reserved all of them.
    """
    if _gpu_locks:
        return
    for gpu in gpus:
        lock = try_lock(Path(tempfile.gettempdir()) / f"arcloop-{os.getuid()}-{gpu}")
        if lock is None:
            continue
        _gpu_locks.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return
    raise ResourceError(
        f"other jobs use all {len(gpus)} GPUs",
        remedy="wait for the other sweep to end",
    )

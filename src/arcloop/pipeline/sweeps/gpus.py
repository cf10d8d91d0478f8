"""GPUs that nobody computes on, one for each process of a sweep."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import BaseFileLock

from arcloop.artifacts.locks import try_lock
from arcloop.errors import ConfigError, ResourceError

_claims: list[BaseFileLock] = []
"""Locks of the GPUs that this process uses until it ends."""


def free_gpus() -> list[str]:
    """Return the ids of the GPUs that CUDA_VISIBLE_DEVICES allows and nobody computes on.

    Raises:
        ConfigError: There is no GPU, or none is free.
    """
    there = _query("--query-gpu=index,uuid")
    if not there:
        raise ConfigError(
            "launcher=gpus, but there is no NVIDIA GPU here",
            remedy="launcher=joblib runs several jobs on the CPU",
        )
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        wanted = {entry.strip() for entry in allowed.split(",")}
        there = [gpu for gpu in there if wanted & set(gpu)]
    busy = {row[0] for row in _query("--query-compute-apps=gpu_uuid,pid")}
    free = [uuid for _, uuid in there if uuid not in busy]
    if not free:
        raise ConfigError(
            f"somebody computes on each of the {len(there)} GPUs",
            remedy="wait, see `nvidia-smi`, or set CUDA_VISIBLE_DEVICES to others",
        )
    return free


def _query(what: str) -> list[list[str]]:
    command = ["nvidia-smi", what, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line]


def claim(gpus: Sequence[str]) -> None:
    """Let this process, and nobody else who claims, see one of these GPUs alone.

    To be called before torch looks for GPUs. A process claims once, and until it ends.

    Raises:
        ResourceError: Others have claimed all of them.
    """
    if _claims:
        return
    for gpu in gpus:
        lock = try_lock(Path(tempfile.gettempdir()) / f"arcloop-{os.getuid()}-{gpu}")
        if lock is None:
            continue
        _claims.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return
    raise ResourceError(
        f"each of the {len(gpus)} GPUs is claimed by another job",
        remedy="wait for the other sweep to end",
    )

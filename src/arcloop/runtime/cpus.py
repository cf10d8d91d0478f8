"""Number of CPUs that this process may use, on Linux, macOS and in containers."""

from __future__ import annotations

import os
from pathlib import Path


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    On Linux this is the number of CPUs in the affinity mask, on macOS the number of CPUs of the
    machine. In a container it is at most the CPU quota of the control group.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def _cgroup_quota() -> float | None:
    """Return the quota of the control group in CPUs; None without a quota."""
    try:  # cgroup v2
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # cgroup v1
            limit = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    if limit == "max" or int(limit) <= 0:
        return None
    return int(limit) / int(period)

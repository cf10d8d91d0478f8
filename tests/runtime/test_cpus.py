import os
from pathlib import Path

import pytest

from arcloop.runtime.cpus import available_cpus


def test_number_is_at_most_that_of_the_affinity_mask():
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_without_an_affinity_mask_all_cpus_of_the_machine_are_counted(monkeypatch):
    """As on macOS, where os has no sched_getaffinity."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(Path, "read_text", missing)
    assert available_cpus() == 6


def missing(path):
    raise FileNotFoundError(path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_quota_of_the_control_group_is_respected(monkeypatch, files, expected):
    def read_text(path):
        name = str(path).removeprefix("/sys/fs/cgroup/")
        return files[name] if name in files else missing(path)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(Path, "read_text", read_text)
    assert available_cpus() == expected

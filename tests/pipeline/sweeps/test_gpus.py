"""Reservation of one GPU per process, tested with a fake nvidia-smi."""

import subprocess
import sys

import pytest

from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.gpus import free_gpus
from arcloop.pipeline.sweeps.plan import plan

NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) printf '0, GPU-a\\n1, GPU-b\\n2, GPU-c\\n' ;;
  --query-compute-apps=*) {apps} ;;
esac
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that fakes three GPUs; its argument prints the processes that use them."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(apps="true"):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(NVIDIA_SMI.format(apps=apps))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def test_gpus_without_processes_are_free(machine):
    machine("printf 'GPU-b, 4711\\n'")
    assert free_gpus() == ["GPU-a", "GPU-c"]


def test_only_visible_gpus_are_free(machine, monkeypatch):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-c")
    assert free_gpus() == ["GPU-b", "GPU-c"]


def test_no_free_gpu_is_an_error(machine):
    machine("printf 'GPU-a, 1\\nGPU-b, 2\\nGPU-c, 3\\n'")
    with pytest.raises(ConfigError, match="all 3 GPUs are in use"):
        free_gpus()


def test_machine_without_gpu_is_an_error(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        free_gpus()


def test_number_of_parallel_jobs_is_the_number_of_free_gpus(machine):
    machine("printf 'GPU-b, 4711\\n'")
    planned = plan("train", ["data=synthetic", "launcher=gpus", "seed=1,2,3,4"])
    assert planned.gpus == ("GPU-a", "GPU-c")
    assert "launcher.jobs=2" in planned.extra


def test_each_process_reserves_another_gpu(machine):
    machine()
    code = (
        "import os, sys; from arcloop.pipeline.sweeps.gpus import reserve_gpu\n"
        "try:\n  reserve_gpu(['GPU-a', 'GPU-b']); reserve_gpu(['GPU-a', 'GPU-b'])\n"
        "except Exception as error: print(error)\n"
        "else: print(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "sys.stdout.flush(); sys.stdin.read()"
    )
    processes = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append((process, process.stdout.readline().strip()))
    for process, _ in processes:
        process.communicate()
    assert [output for _, output in processes[:2]] == ["GPU-a", "GPU-b"]
    assert "other jobs use all 2 GPUs" in processes[2][1]

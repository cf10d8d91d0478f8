"""Parallel jobs on this machine (`launcher=joblib`) compared with one job after another.

Sweeps of two jobs on MNIST, once of short and once of long jobs. The serial sweep uses as many
threads as there are cores (`threads=auto`). The parallel sweep starts two processes. Each uses the
same number of threads (`threads=auto`, which gives the same models) or half of it. The start of a
process (imports, data) is part of the time. Other programs affect the CPU time less than the wall
time.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import joblib

from benchmarks.measure import Comparison, Section, Size

TITLE = "Sweeps with parallel jobs"
_SWEEP = ["-m", "experiment=mnist", "callbacks=export_only", "logger=csv", "seed=0,1"]
_SHORT = ["trainer.max_epochs=1", "+trainer.limit_train_batches=20"]


def measure(size: Size) -> Section:
    """Measure rates and CPU times of both launchers."""
    cores = joblib.cpu_count(only_physical_cores=True)
    half = max(1, cores // 2)
    variants = {
        f"serial, {cores} threads": [f"threads={cores}"],
        f"joblib, 2 jobs with {cores} threads": ["launcher=joblib", f"threads={cores}"],
        f"joblib, 2 jobs with {half} threads": ["launcher=joblib", f"threads={half}"],
    }
    lengths = {
        "short jobs": _SHORT,
        "long jobs": [f"trainer.max_epochs={size.of(1, 1, 5)}"],
    }
    comparisons, tables = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(["validate", "experiment=mnist"], folder)
        for length, job in lengths.items():
            found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
            for number in range(size.of(1, 2, 5)):
                for at, (variant, overrides) in enumerate(variants.items()):
                    where = f"hydra.sweep.dir={length.split()[0]}-{number}-{at}"
                    found[variant].append(_run(["train", *_SWEEP, *job, *overrides, where], folder))
            rates = {variant: [2 / wall for wall, _ in times] for variant, times in found.items()}
            first, *others = variants
            comparisons += [
                Comparison(f"{length}: {o} against {first}", rates[o], rates[first], "jobs/s", None)
                for o in others
            ]
            tables[f"two {length}"] = [
                {
                    "launcher and threads of a job": variant,
                    "time, s": statistics.median(wall for wall, _ in times),
                    "CPU time, s": statistics.median(cpu for _, cpu in times),
                }
                for variant, times in found.items()
            ]
    load = f"The load average after the measurement was {os.getloadavg()[0]:.1f}."
    return Section(comparisons, tables, [load])


def _run(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a command; return its time and its CPU time in seconds, with that of its processes."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "arcloop", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu

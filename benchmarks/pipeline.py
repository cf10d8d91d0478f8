"""Overhead of a pipeline on this machine over `arcloop run`: the same job both ways, in turn.

The target is at most 0.5 s per step.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Section, Size

_SUBMIT = Path(__file__).parents[1] / "kubeflow" / "submit.py"
_JOB = [
    "data=synthetic", "data.train=2000", "data.val=400", "data.gallery=400", "data.query=400",
    "trainer.max_epochs=2", "backbone.widths=[16,16]", "evaluate.gate.min_top1=2e-9",
]  # fmt: skip
_STEPS = 6
"""Steps of both; the gate does not pass, so the pipeline does not deploy."""


TITLE = "A pipeline on this machine"


def measure(size: Size) -> Section:
    """Measure the seconds of both, and the difference per step."""
    if importlib.util.find_spec("kfp") is None:
        return Section(notes=["Not measured: kfp is not installed."])
    job = [*_JOB, "evaluate.gate.max_eer=0.0", "evaluate.gate.min_map_at_r=1.0"]
    pairs = []
    for number in range(size.of(2, 2, 4)):  # the first round fills the disk cache
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            alone = _seconds([sys.executable, "-m", "arcloop", "run", *job], folder)
            piped = _seconds([sys.executable, str(_SUBMIT), *job], folder)
        if number:
            pairs.append((alone, piped))
    each = statistics.median((piped - alone) / _STEPS for alone, piped in pairs)
    row = {
        "arcloop run, s": statistics.median(a for a, _ in pairs),
        "arcloop pipeline, s": statistics.median(p for _, p in pairs),
        "overhead per step, s": each,
    }
    return Section([], {"the same small job": [row]})


def _seconds(command: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 3:  # the gate did not pass
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds

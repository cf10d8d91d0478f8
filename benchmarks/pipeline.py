"""What a pipeline on this machine costs over `arcloop run`: the same job both ways, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.measure import console, machine

_SUBMIT = Path(__file__).parents[1] / "kubeflow" / "submit.py"
_JOB = [
    "data=synthetic", "data.train=2000", "data.val=400", "data.gallery=400", "data.query=400",
    "trainer.max_epochs=2", "backbone.widths=[16,16]", "evaluate.gate.min_top1=2e-9",
]  # fmt: skip
_STEPS = 6
"""Both do these; the pipeline's deploy is left out by a gate that cannot pass."""


def compare(*, rounds: int = 5) -> None:
    """Print seconds of both, and the difference over the number of steps."""
    job = [*_JOB, "evaluate.gate.max_eer=0.0", "evaluate.gate.min_map_at_r=1.0"]
    pairs = []
    for number in range(rounds + 1):  # the first round fills the caches of the disk
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            alone = _seconds([sys.executable, "-m", "arcloop", "run", *job], folder)
            piped = _seconds([sys.executable, str(_SUBMIT), *job], folder)
        if number:
            pairs.append((alone, piped))
    each = [(piped - alone) / _STEPS for alone, piped in pairs]
    table = Table(title=f"a pipeline on this machine; {machine()}", show_header=False)
    table.add_row("arcloop run", f"{statistics.median(a for a, _ in pairs):.2f} s", "")
    table.add_row("submit.py cluster=local", f"{statistics.median(p for _, p in pairs):.2f} s", "")
    table.add_row(
        "overhead a step",
        f"{statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})",
        "at most 0.5",
    )
    console.print(table)


def _seconds(command: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 3:  # the gate did not pass
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


if __name__ == "__main__":
    compare()

"""Peak memory of each step at 20k and 200k synthetic images: it must not grow with their number."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.measure import console, machine

_STEPS = ("prepare", "validate", "embed", "index", "evaluate")
_CODE = """
import json, resource, sys
from pathlib import Path
from arcloop.steps import run_step
name, overrides, inputs, output = json.loads(sys.argv[1])
run_step(name, overrides, {k: Path(v) for k, v in inputs.items()}, Path(output))
# ru_maxrss of this process would be that of the benchmark it was forked from, if that is larger.
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print("PEAK", max(int(own), children))
"""


def compare(sizes: Sequence[int] = (20_000, 200_000)) -> None:
    """Print peak resident MiB by step and size, and the growth from first to last.

    Gallery and query hold half of the images each. The index itself is not counted.
    """
    peaks = {rows: _peaks(rows) for rows in sizes}
    table = Table(title=f"peak resident MiB; {machine()}")
    table.add_column("step")
    for rows in sizes:
        table.add_column(f"{rows:,} images", justify="right")
    table.add_column("growth", justify="right")
    for step in _STEPS:
        figures = [peaks[rows][step] / 1024 for rows in sizes]
        growth = figures[-1] / figures[0] - 1
        table.add_row(step, *(f"{figure:.0f}" for figure in figures), f"{growth:+.1%}")
    console.print(table)


def _peaks(rows: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = ["data=synthetic", "data.val=1000", "data.train=2000", "trainer.max_epochs=1",
               "callbacks=export_only", "loader.batch_size=200"]  # fmt: skip
        share = rows // 2
        data = [*few, f"data.gallery={share}", f"data.query={share}"]
        paths = {role: str(folder / role) for role in ("store", "run", "gallery", "index")}
        found = {}
        for step, output in (("prepare", "store"), ("validate", "validation"), ("train", "run"),
                             ("embed", "gallery"), ("index", "index"),
                             ("evaluate", "evaluation")):  # fmt: skip
            call = json.dumps([step, data, paths, str(folder / output)])
            result = subprocess.run(
                [sys.executable, "-c", _CODE, call], capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise RuntimeError(f"{step}: {result.stderr[-2000:]}")
            found[step] = int(result.stdout.rpartition("PEAK ")[2])
            if step in ("index", "evaluate"):  # what must be in memory to be searched
                found[step] -= (folder / "index" / "faiss_index.bin").stat().st_size // 1024
        return found

"""The default job from nothing: seconds of `arcloop run experiment=mnist`, and what it reaches."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

from arcloop.times import stage_times
from benchmarks.measure import console, machine


def measure(folder: Path) -> Path:
    """Run it in an empty folder, print its figures, and return the run."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "arcloop", "run", "experiment=mnist"]
    subprocess.run(command, cwd=folder, check=True)
    seconds = time.perf_counter() - start
    run = folder / "runs" / "mnist"
    (store,) = (folder / "stores").iterdir()
    metrics = json.loads((run / "evaluation" / "metrics.json").read_bytes())
    table = Table(title=f"arcloop run experiment=mnist; {machine()}", show_header=False)
    table.add_row("whole command", f"{seconds:.1f} s", "at most 90, aim 60")
    table.add_row("query top-1", f"{metrics['top1']:.4f}", "at least 0.993")
    folders = {"store": store, "validation": store / "validation", "run": run,
               **{kind: run / kind for kind in ("gallery", "index", "evaluation")}}  # fmt: skip
    for stage, figures in stage_times(folders):
        table.add_row(stage, figures, "")
    console.print(table)
    return run


def same_bytes_twice() -> None:
    """Run a short job twice in two places and compare what must be equal to the byte."""
    files = ("model.pt", "index/faiss_index.bin", "index/faiss_label.json",
             "evaluation/metrics.json", "metrics.csv")  # fmt: skip
    contents = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, "-m", "arcloop", "run", "experiment=mnist",
                       "trainer.max_epochs=1", "run_dir=run"]  # fmt: skip
            subprocess.run(command, cwd=name, check=True, capture_output=True)
            contents.append([(Path(name) / "run" / file).read_bytes() for file in files])
    table = Table(title="two runs of one config and seed, two folders", show_header=False)
    for file, first, second in zip(files, *contents, strict=True):
        table.add_row(file, "equal" if first == second else "DIFFERENT")
    console.print(table)

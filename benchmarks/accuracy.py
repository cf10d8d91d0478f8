"""Training time until query top-1 reaches 0.993 and 0.995 on MNIST, with the default job.

There is one run for each number of epochs, because the schedule depends on it. All have seed 0.
They train in float32, the default, and in bf16 if the processor has instructions for it. Times
are those of fit including its validation, without scripting, embedding, index and report. The
settings of the default job, including its 5 epochs, were chosen on val. The first table shows the
fastest run that reaches a goal on query; this is a measurement, and nothing was chosen by it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from arcloop.training.fit import cpu_has_bf16
from benchmarks.measure import Section, Size

TITLE = "Time to accuracy"
_GOALS = (0.993, 0.995)


def measure(size: Size) -> Section:
    epochs = size.of((1,), (3,), (3, 5, 8))
    limits = size.of(["+trainer.limit_train_batches=20"], [], [])
    precisions = ["32-true"]
    if cpu_has_bf16():
        precisions.append("bf16-mixed")
    with tempfile.TemporaryDirectory() as name:
        rows = [
            _fit(Path(name), precision, count, limits) for precision in precisions
            for count in epochs
        ]  # fmt: skip
    reached = []
    for goal in _GOALS:
        enough = [row for row in rows if row["query top-1"] >= goal]
        soonest = min(enough, key=lambda row: row["fit, s"], default={})
        reached.append(
            {
                "query top-1 reached": f"{goal}",
                **{key: soonest.get(key) for key in ("precision", "epochs", "fit, s")},
            }
        )
    return Section([], {"fastest run": reached, "by epochs": rows})


def _fit(folder: Path, precision: str, epochs: int, limits: list[str]) -> dict[str, Any]:
    run = f"runs/{precision}-{epochs}"
    job = ["experiment=mnist", f"trainer.precision={precision}", f"trainer.max_epochs={epochs}",
           f"run_dir={run}", "monitor=val_top1", *limits]  # fmt: skip
    command = [sys.executable, "-m", "arcloop", "run", *job]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr[-2000:])
    seconds = json.loads((folder / run / ".timing.json").read_bytes())["seconds"]
    metrics = json.loads((folder / run / "evaluation" / "metrics.json").read_bytes())
    manifest = json.loads((folder / run / "manifest.json").read_bytes())
    return {
        "precision": precision, "epochs": epochs, "fit, s": seconds,
        "val top-1": manifest["info"]["objective"], "query top-1": metrics["top1"],
    }  # fmt: skip

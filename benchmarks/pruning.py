"""Epochs that a pruner saves in a sweep of 27 settings, and the regret of the setting it chooses.

The settings are 3 margins x 3 scales x 3 learning rates of a small network on a part of MNIST, with
9 epochs and one seed, one job after another. Training is deterministic, so a setting has the same
value in every sweep. The regret is the difference between the best value of all settings, trained
to the end, and the value of the chosen one; both are val_map_at_r, by which the sweeps choose. The
learning-rate schedule spans all 9 epochs, also in jobs that are pruned.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Section, Size

TITLE = "Pruning of a sweep"
_PRUNERS = (None, "asha", "median")
_JOB = [
    "backbone.widths=[8,16]", "callbacks=export_only", "callbacks.export=null", "logger=csv",
    "+trainer.limit_train_batches=12", "+trainer.limit_val_batches=1",
]  # fmt: skip
_SETTINGS = ["head.margin=0.2,0.35,0.5", "head.scale=16,32,64", "optimizer.lr=0.01,0.05,0.25"]
_FEW = ["head.margin=0.2,0.5", "head.scale=32", "optimizer.lr=0.01,0.25"]


def measure(size: Size) -> Section:
    """Run the sweep without a pruner and with each one."""
    settings, epochs = size.of(_FEW, _SETTINGS, _SETTINGS), size.of(3, 9, 9)
    rows: list[dict[str, Any]] = []
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for pruner in _PRUNERS:
            jobs = _sweep(Path(name), pruner, [*settings, f"trainer.max_epochs={epochs}"])
            pruned = [job["pruned"]["epoch"] for job in jobs.values() if job["pruned"]]
            trained = sum(pruned) + epochs * (len(jobs) - len(pruned))
            found = {n: job["objective"] for n, job in jobs.items() if not job["pruned"]}
            values = values or found  # of the sweep without a pruner
            chosen = max(found, key=found.__getitem__)
            rows.append(
                {
                    "pruner": pruner or "none",
                    "jobs pruned": len(pruned),
                    "epochs": trained,
                    "share of the epochs": trained / (epochs * len(jobs)),
                    "val_map_at_r": values[chosen],
                    "regret": max(values.values()) - values[chosen],
                    "chosen": chosen.replace("_", " "),
                }
            )
    return Section([], {f"{len(values)} settings": rows})


def _sweep(folder: Path, pruner: str | None, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Run a sweep and return folder -> record of its jobs."""
    sweep = f"runs/sweeps/{pruner or 'none'}"
    words = [] if pruner is None else [f"sweep/pruner={pruner}"]
    command = [sys.executable, "-m", "arcloop", "train", "-m", "sweep=grid", *words, *_JOB,
               *overrides, f"hydra.sweep.dir={sweep}"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    jobs = [run for run in sorted((folder / sweep).iterdir()) if not run.is_symlink()]
    records = [run / "job.json" for run in jobs if (run / "job.json").is_file()]
    return {file.parent.name: json.loads(file.read_bytes()) for file in records}

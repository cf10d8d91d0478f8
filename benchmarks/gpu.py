"""Measurements on a GPU: training, time to accuracy, sharded head, embedding.

The code of the sections above on one GPU in bf16, with the data in GPU memory: training compared
with a bare loop, the default job, ArcFace over 1,000,000 classes, and `embed` compared with a loop
over model.pt.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from arcloop.config.composition import compose_config
from arcloop.pipeline import steps
from benchmarks import embedding, heads, training
from benchmarks.measure import Section, Size

TITLE = "On a GPU"
_GPU = ["trainer=gpu", "loader.on_device=true"]


def measure(size: Size) -> Section:
    if not torch.cuda.is_available():
        return Section(notes=["Not measured: no GPU was available."])
    limit, rounds = size.of((20, 2), (100, 5), (100, 5))
    section = Section()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, job in (
            ("mnist", ["experiment=mnist", "loader.batch_size=1024"]),
            ("faces", ["data=synthetic", "data.image_size=112", "data.channels=3",
                       "data.train=20000", "backbone=iresnet50", "loader.batch_size=128"]),
        ):  # fmt: skip
            store = folder / network
            steps.apply("prepare", compose_config(job), {}, store)
            one = training.compare(store, [*job, *_GPU], limit=limit, rounds=rounds)
            section.comparisons.append(one)
        start = time.perf_counter()
        job = ["experiment=mnist", *_GPU, f"store_dir={folder / 'mnist'}", "run_dir=run"]
        subprocess.run([sys.executable, "-m", "arcloop", "run", *job], cwd=folder, check=True)
        section.tables["the default job"] = [{"whole command, s": time.perf_counter() - start}]
        model = folder / "run" / "model.pt"
        section.comparisons.append(embedding.compare(folder / "mnist", model, device="cuda"))
    section.tables |= heads.measure(size).tables
    return section

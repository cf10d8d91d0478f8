"""`arcloop run` with 2,000 classes, deterministic, in a process with limited memory."""

import csv
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from arcloop.cli.main import main
from arcloop.retrieval import Gallery
from arcloop.runtime.images import encode_png

CLASSES = 2000
COMMAND = [
    "run", "data=synthetic", f"data.num_classes={CLASSES}", "data.image_size=8", "data.train=4000",
    "data.val=4000", "data.gallery=2000", "data.query=8000", "data.noise=1.0",
    "backbone.widths=[4,4]", "embedder.embedding_dim=16", "trainer.max_epochs=1",
    "loader.batch_size=1000", "calibration.max_queries=500", "evaluate.num_projected=60",
    "evaluate.gate.min_top1=0", "run_dir=run",
]  # fmt: skip
MAX_MIB = 3 * 1024


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the command ended well, and its peak of resident memory in MiB."""
    folder = tmp_path_factory.mktemp("many")
    # torch reserves much more address space than it uses, so RLIMIT_AS would be reached at once.
    # RLIMIT_DATA ends the process before the machine runs out of memory.
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "arcloop", *COMMAND], cwd=folder
    )
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (3 * MAX_MIB * 2**20,) * 2)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return folder, used.ru_maxrss / 1024


def test_memory_is_limited(finished):
    """Counting answers by comparing 8,000 queries with 2,000 x 2,000 cells would need 30 GB."""
    assert finished[1] < MAX_MIB


def test_the_results_are_complete_and_small(finished, monkeypatch, capsys, tmp_path):
    folder, _ = finished
    run = folder / "run"
    assert (run / "evaluation/report.html").stat().st_size < 5e6
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [row for row in rows if row["train_loss"]]  # though there are fewer than 50 steps
    assert 3 <= len(losses) < 50
    assert all(any(row[name] for name in row if name.startswith("lr")) for row in losses)
    labels = np.load(run / "index/faiss_label.npy")
    assert np.array_equal(labels, Gallery(run / "gallery").labels)
    image = np.load(run / "golden.npz")["images"][0]
    (tmp_path / "image.png").write_bytes(encode_png(image))
    monkeypatch.chdir(folder)
    assert main(["query", str(tmp_path / "image.png"), "--run", "run"]) == 0
    assert "class-" in capsys.readouterr().out

"""SIGTERM during training: last.ckpt is written, and the same command continues exactly."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests.conftest import arcloop_in
from tests.distributed.test_launcher import ranks_of

from arcloop.errors import TERMINATED
from arcloop.models.checkpoints import read_checkpoint

TRAIN = [
    "train", "data=synthetic", "data.train=800", "data.val=40",
    "data.gallery=40", "data.query=20", "data.num_classes=4", "data.image_size=16",
    "backbone.widths=[4,4]", "embedder.embedding_dim=8", "embedder.dropout=0.2",
    "trainer.max_epochs=1", "trainer.log_every_n_steps=7", "loader.batch_size=4",
    "callbacks=export_only", "callbacks.last.every_n_steps=20", "evaluate.gate.min_top1=null",
]  # fmt: skip
STEPS = 200
IN_ONE_PROCESS = [*TRAIN, "loader.num_workers=1", "trainer.accumulate_grad_batches=2"]


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def terminate_in_training(folder, command, target):
    """Send SIGTERM to a training after its first checkpoint, and return the last step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "arcloop", *command, "run_dir=stopped"],
        cwd=folder, start_new_session=True,
    )  # fmt: skip
    checkpoint = folder / "stopped/checkpoints/last.ckpt"
    wait_for(checkpoint, process)
    if target == "all processes":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if target == "parent" else ranks_of(process.pid)[1], signal.SIGTERM)
    assert process.wait(60) == TERMINATED
    assert not (folder / "stopped/manifest.json").exists()
    return read_checkpoint(checkpoint)["global_step"]


def results(folder, command, run):
    arcloop_in(folder, *command, f"run_dir={run}")
    return [(folder / run / file).read_bytes() for file in ("model.pt", "metrics.csv")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return results(tmp_path_factory.mktemp("whole"), IN_ONE_PROCESS, "whole")


@pytest.mark.parametrize("target", ["parent", "all processes"])
def test_a_terminated_training_continues_exactly(tmp_path, target, uninterrupted):
    step = terminate_in_training(tmp_path, IN_ONE_PROCESS, target)
    assert 20 < step < STEPS // 2  # a step after the regular checkpoint
    assert results(tmp_path, IN_ONE_PROCESS, "stopped") == uninterrupted


@pytest.mark.parametrize("target", ["parent", "all processes", "one rank"])
def test_all_ranks_stop_at_the_same_step(tmp_path, target):
    command = [*TRAIN, "trainer=ddp_cpu", "loader.batch_size=2"]
    assert 20 < terminate_in_training(tmp_path, command, target) < STEPS
    if target == "one rank":
        assert results(tmp_path, command, "stopped") == results(tmp_path, command, "whole")

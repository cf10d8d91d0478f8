"""SIGTERM during training: last.ckpt is written, and the same command continues exactly."""

import os
import re
import signal
from pathlib import Path

from tests import forks
from tests.conftest import arcloop_in

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.errors import TERMINATED
from arcloop.models.checkpoints import read_checkpoint

TRAIN = [
    "train", "data=synthetic", "data.train=480", "data.val=40",
    "data.gallery=40", "data.query=20", "data.num_classes=4", "data.image_size=16",
    "backbone.widths=[4,4]", "embedder.embedding_dim=8", "embedder.dropout=0.2",
    "trainer.max_epochs=1", "trainer.log_every_n_steps=7", "loader.batch_size=4",
    "callbacks=export_only", "callbacks.last.every_n_steps=10", "evaluate.gate.min_top1=null",
]  # fmt: skip
STEPS = 120
IN_ONE_PROCESS = [*TRAIN, "loader.num_workers=1", "trainer.accumulate_grad_batches=2"]
IN_TWO_PROCESSES = [*TRAIN, "trainer=ddp_cpu", "loader.batch_size=2"]
CHECKPOINT = Path("stopped/checkpoints/last.ckpt")


def ranks_of(parent):
    """Process ids of the training processes that a command started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                status = (entry / "status").read_text()
            except OSError:
                continue
            if b"arcloop.pipeline.train_worker" in command and f"PPid:\t{parent}\n" in status:
                found.append(int(entry.name))
    return found


def last_step():
    return read_checkpoint(CHECKPOINT)["global_step"] if CHECKPOINT.exists() else 0


def next_save():
    """The step of the next regular checkpoint."""
    return (last_step() // 10 + 1) * 10


def stop(command, target, number=signal.SIGTERM):
    """Send a signal to a training after its next checkpoint; return its exit code and its ranks."""
    before = CHECKPOINT.stat().st_mtime_ns if CHECKPOINT.exists() else 0
    process = forks.start(main, [*command, "run_dir=stopped"], output="output.txt")
    forks.wait_for(lambda: CHECKPOINT.exists() and CHECKPOINT.stat().st_mtime_ns > before, process)
    ranks = ranks_of(process.pid)
    if target == "all processes":
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if target == "parent" else ranks[1], number)
    process.join(60)
    assert not artifacts.exists(Path("stopped"))
    return process.exitcode, ranks


def results(command, run):
    arcloop_in(Path.cwd(), *command, f"run_dir={run}")
    return [(Path(run) / file).read_bytes() for file in ("model.pt", "metrics.csv")]


def test_a_terminated_training_continues_exactly(in_tmp):
    for target in ("parent", "all processes"):
        regular = next_save()
        assert stop(IN_ONE_PROCESS, target)[0] == TERMINATED
        assert regular < last_step() < STEPS // 2  # a step after the regular checkpoint
    assert results(IN_ONE_PROCESS, "stopped") == results(IN_ONE_PROCESS, "whole")


def test_all_ranks_stop_at_the_same_step_and_continue_exactly(in_tmp):
    for target in ("parent", "all processes", "one rank"):
        regular = next_save()
        assert stop(IN_TWO_PROCESSES, target)[0] == TERMINATED
        assert regular < last_step() < STEPS
    code, ranks = stop(IN_TWO_PROCESSES, "one rank", signal.SIGKILL)
    assert code == 1
    assert re.search(r"error: rank \d of 2 ended with SIGKILL", Path("output.txt").read_text())
    assert len(ranks) == 2
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    assert results(IN_TWO_PROCESSES, "stopped") == results(IN_TWO_PROCESSES, "whole")

"""Training in several processes: results of one process, common failure, external launchers."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import SMALL
from tests.training.ports import free_port

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.composition import compose_config
from arcloop.distributed.launcher import count_processes_to_start
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.record import RECORD, JobRecord

FAILING_INDEX = """
from arcloop.errors import ArtifactError
from arcloop.retrieval import FaissIndex


class FailingIndex(FaissIndex):
    def build(self, gallery, *, not_trained=None):
        raise ArtifactError(f"the index of {gallery.rows} rows cannot be built")
"""
TWO = [*SMALL, "trainer=ddp_cpu", "loader.batch_size=25", "callbacks=export_only"]


def losses(run):
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]


def test_a_sweep_over_two_processes_is_pruned_and_has_the_curve_of_one(in_tmp, capfd):
    """One process sees batches of 50, two see 25 each: the same global batches."""
    plain = ["augmentation=none", "trainer.log_every_n_steps=1", "optimizer.head_lr=0.05"]
    one = [*SMALL, *plain, "run_dir=one", "optimizer.lr=0.002", "callbacks=export_only"]
    assert main(["train", *one]) == 0
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    swept = ["sweep=grid", "sweep/pruner=asha", "optimizer.lr=0.002,1e-7,1e30"]
    assert main(["train", "-m", *TWO, *plain, *swept]) == 1
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before  # otherwise Ctrl-C would be an error of one job
    folders = {
        lr: in_tmp / f"runs/sweeps/synthetic/optimizer.lr-{lr}"
        for lr in ("0.002", "1e-07", "1e+30")
    }
    run = artifacts.load(folders["0.002"], "run")
    assert run.config["optimizer"]["lr"] == 0.002
    assert run.config["trainer"]["devices"] == 2
    expected, same, other = (
        losses(path) for path in (in_tmp / "one", folders["0.002"], folders["1e-07"])
    )
    assert len(expected) == len(same) == 12
    # Two processes sum in another order than one. Training amplifies the difference in rounding,
    # most of all where an activation changes its sign; at which step depends on the instruction
    # set. So the first steps are compared tightly, and of the second epoch only the mean.
    assert same[:4] == pytest.approx(expected[:4], rel=1e-4)
    assert np.mean(same[6:]) == pytest.approx(np.mean(expected[6:]), rel=0.1)
    assert other[:4] != pytest.approx(expected[:4], rel=1e-2)

    found = {lr: JobRecord.read(folder / RECORD) for lr, folder in folders.items()}
    assert found["0.002"].objective == run.info["objective"]
    assert found["1e-07"].pruned.epoch == 1
    assert found["1e-07"].failure is None
    diverged = found["1e+30"].failure
    assert diverged.what.startswith("training diverged: the loss is nan in step 2, epoch 1")
    assert not diverged.retry
    assert not list(in_tmp.glob("runs/sweeps/synthetic/*.failed.json"))
    assert "error: rank" not in capfd.readouterr().err


def test_torchrun_over_two_nodes(in_tmp):
    """One with options on the command line, the other with the variables that a TrainJob sets."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    job = ["-m", "arcloop", "train", *TWO, "trainer.devices=1", "trainer.num_nodes=2"]
    port, nodes = free_port(), []
    for rank in range(2):
        settings = {"nnodes": "2", "nproc-per-node": "1", "node-rank": str(rank),
                    "master-addr": "127.0.0.1", "master-port": str(port)}  # fmt: skip
        if rank == 0:
            command, pet = [*torchrun, *(f"--{k}={v}" for k, v in settings.items()), *job], {}
        else:
            command = [*torchrun, *job]
            pet = {f"PET_{k.upper().replace('-', '_')}": v for k, v in settings.items()}
        nodes.append(subprocess.Popen(command, env=os.environ | pet))
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    run = artifacts.load(in_tmp / "runs/synthetic", "run")
    assert run.config["trainer"]["num_nodes"] == 2


def test_several_devices_without_a_strategy_for_them_are_refused(in_tmp, capsys):
    assert main(["train", *TWO, "trainer=cpu", "trainer.devices=2"]) == 2
    error = capsys.readouterr().err
    assert "2 devices, but a strategy for one process" in error
    assert "trainer=ddp_cpu" in error
    assert not any(in_tmp.iterdir())


@pytest.mark.parametrize(
    ("trainer", "devices", "expected"),
    [
        ("ddp", "'0,1'", 2),
        ("ddp", "'1,3'", 2),
        ("ddp", "'2'", 2),
        ("ddp", "2", 2),
        ("ddp", "[0,2,3]", 3),
        ("ddp", "'3,'", 1),
        ("ddp", "-1", 4),
        ("ddp", "'-1'", 4),
        ("ddp", "auto", 4),
        ("ddp_cpu", "'3'", 3),
        ("ddp_cpu", "3", 3),
        ("gpu", "[2]", 1),
    ],
)
def test_devices_are_counted_as_lightning_counts_them(monkeypatch, trainer, devices, expected):
    """On a machine with four GPUs."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = compose_config([f"trainer={trainer}", f"trainer.devices={devices}"])
    assert count_processes_to_start(config) == expected


@pytest.mark.parametrize(
    ("trainer", "devices", "message"),
    [
        ("ddp", "'0,7'", r"requested gpu: \[0, 7\]"),
        ("ddp_cpu", "'0,1'", "trainer.devices='0,1' is not possible with trainer.accelerator=cpu"),
        ("ddp_cpu", "0", "trainer.devices=0 is not possible"),
        ("gpu", "'0,1'", "2 devices, but a strategy for one process"),
    ],
)
def test_devices_that_do_not_exist_are_refused(monkeypatch, trainer, devices, message):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = compose_config([f"trainer={trainer}", f"trainer.devices={devices}"])
    with pytest.raises(ConfigError, match=message):
        count_processes_to_start(config)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, "the launcher started 2 processes"),
        ({"PET_NPROC_PER_NODE": "2", "PET_NNODES": "2"}, "the launcher started 1 processes"),
    ],
)
def test_another_number_of_processes_than_asked_for_is_refused(
    in_tmp, monkeypatch, capsys, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *TWO, "trainer.devices=4"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "1 nodes x 4 devices" in error


def test_a_failure_of_one_process_after_fit_ends_the_job_with_its_message(
    in_tmp, monkeypatch, capfd
):
    """Rank 0 builds the index while rank 1 waits for it."""
    Path("failing.py").write_text(FAILING_INDEX)
    monkeypatch.syspath_prepend(in_tmp)
    monkeypatch.setenv("PYTHONPATH", str(in_tmp), prepend=os.pathsep)
    after_fit = [one for one in TWO if not one.startswith("callbacks=")]
    index = ["index._target_=failing.FailingIndex", "trainer.max_epochs=1"]
    assert main(["train", *after_fit, *index]) == 1
    text = capfd.readouterr().err
    assert "the index of 90 rows cannot be built" in text
    assert re.search(r"error: rank \d of 2 ended with code \d", text)
    assert not artifacts.exists(in_tmp / "runs/synthetic")

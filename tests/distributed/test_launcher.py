"""Training in several processes: results of one process, common failure, external launchers."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
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


def test_a_sweep_over_two_processes_makes_complete_runs_on_the_curve_of_one(in_tmp):
    """One process sees batches of 50, two see 25 each: the same global batches."""
    plain = ["augmentation=none", "trainer.log_every_n_steps=1", "optimizer.lr=0.002",
             "optimizer.head_lr=0.05"]  # fmt: skip
    one = [*SMALL, *plain, "run_dir=one", "head.margin=0.3", "callbacks=export_only"]
    assert main(["train", *one]) == 0
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["train", "-m", *TWO, *plain, "head.margin=0.3,0.5"]) == 0
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before  # otherwise Ctrl-C would be an error of one job
    folder = in_tmp / "runs/sweeps/synthetic"
    for margin in ("0.3", "0.5"):
        run = artifacts.load(folder / f"head.margin-{margin}", "run")
        assert run.config["head"]["margin"] == float(margin)
        assert run.config["trainer"]["devices"] == 2
    expected, same, other = (
        losses(path)
        for path in (in_tmp / "one", folder / "head.margin-0.3", folder / "head.margin-0.5")
    )
    assert len(expected) == len(same) == len(other) == 12
    # Two processes sum in another order than one. Training amplifies the difference in rounding,
    # most of all where an activation changes its sign; at which step depends on the instruction
    # set. So the first steps are compared tightly, and of the second epoch only the mean.
    assert same[:4] == pytest.approx(expected[:4], rel=1e-4)
    assert np.mean(same[6:]) == pytest.approx(np.mean(expected[6:]), rel=0.1)
    assert other[:4] != pytest.approx(expected[:4], rel=1e-2)


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


def test_a_killed_rank_ends_the_job_which_can_then_resume(in_tmp):
    arguments = ["train", *TWO, "trainer.max_epochs=20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "arcloop", *arguments], stderr=subprocess.PIPE, text=True
    )
    last = in_tmp / "runs/synthetic/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"error: rank \d of 2 ended with SIGKILL", text)
    assert not artifacts.exists(in_tmp / "runs/synthetic")
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    assert main([*arguments, "resume=true"]) == 0
    assert artifacts.exists(in_tmp / "runs/synthetic")


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

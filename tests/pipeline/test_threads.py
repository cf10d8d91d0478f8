"""The number of threads is recorded in a run, and used again by every step on it."""

import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.artifacts.atomic import write_json
from arcloop.cli.main import main
from arcloop.config.composition import compose_config
from arcloop.distributed.launcher import worker_job
from arcloop.pipeline import train_worker

TRAIN = ["train", *SMALL, "callbacks=export_only", "logger=csv"]


class PrintThreads(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        print(f"threads in step {batch_idx}: {torch.get_num_threads()}")


def recorded(folder, kind="run"):
    manifest = artifacts.load(Path(folder), kind)
    return manifest.config.get("threads"), manifest.code["threads"]


def test_a_finished_run_is_used_with_its_number_of_threads(in_tmp, monkeypatch, capsys):
    assert main([*TRAIN, "threads=2"]) == 0
    assert torch.get_num_threads() == 1
    assert recorded("runs/synthetic") == (2, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as on another machine
    assert main(TRAIN) == 0
    assert "already trained" in capsys.readouterr().err
    assert main([*TRAIN, "threads=1"]) == 2
    assert "another config" in capsys.readouterr().err
    assert main(["embed", "run_dir=runs/synthetic"]) == 0
    assert recorded("runs/synthetic/gallery", "gallery")[1] == "2"
    assert main(["embed", "run_dir=runs/synthetic", "threads=1"]) == 0
    assert recorded("runs/synthetic/gallery", "gallery")[1] == "1"
    assert main(["lineage", "runs/synthetic"]) == 0
    assert "threads: 2" in capsys.readouterr().out
    assert main(["reproduce", "runs/synthetic", "--keep"]) == 0
    assert recorded("runs/synthetic-reproduced") == (2, "2")
    assert main([*TRAIN, "overwrite=true"]) == 0
    assert recorded("runs/synthetic") == (1, "1")


def test_a_resumed_run_continues_with_its_number_of_threads(in_tmp, monkeypatch):
    stop = ["callbacks.last.every_n_steps=4", "+callbacks.last.stop_at_step=4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert main([*TRAIN, *stop]) == 143
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(TRAIN) == 0
    assert recorded("runs/synthetic") == (2, "2")


def test_lightning_does_not_change_the_number_of_threads(in_tmp, monkeypatch, capfd):
    """Its strategy for DDP uses all cores if `OMP_NUM_THREADS` is not set."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    command = [*TRAIN, "trainer=ddp_cpu", "trainer.max_epochs=1", "threads=3"]
    target = f"+callbacks.own._target_={PrintThreads.__module__}.PrintThreads"
    assert main([*command, "trainer.devices=1", target]) == 0
    printed = [line for line in capfd.readouterr().out.splitlines() if "threads in step" in line]
    assert len(printed) == 6
    assert {line.rpartition(" ")[2] for line in printed} == {"3"}


@pytest.mark.parametrize("value", ["0", "two", "1.5"])
def test_a_wrong_number_is_refused(in_tmp, capsys, value):
    assert main([*TRAIN, f"threads={value}"]) == 2
    assert "threads" in capsys.readouterr().err
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize(("threads", "expected"), [("auto", 3), (2, 2)])
def test_a_worker_of_a_trainjob_counts_its_threads(tmp_path, monkeypatch, threads, expected):
    """The pod that writes the job is another machine than the nodes that train."""
    config, job = compose_config([f"threads={threads}"]), tmp_path / "job.json"
    write_json(job, worker_job(config, tmp_path, tmp_path / "run", [], pipeline_task=True))
    found = []
    monkeypatch.setattr(
        train_worker, "train_here",
        lambda config, *_, **__: found.append((config.threads, torch.get_num_threads())),
    )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train_worker", str(job)])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert train_worker.main() == 0
    assert found == [(expected, expected)]

"""Settings that cannot give a trained run are errors before the work that they would waste."""

import multiprocessing
import os
import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.errors import ConfigError
from arcloop.training.preconditions import check_first_validation

EARLY_STOPPING = "pytorch_lightning.callbacks.EarlyStopping"
KNOWN_FROM_THE_CONFIG = {
    "no epochs": (["trainer.max_epochs=0"], "trainer.max_epochs=0 trains nothing"),
    "no steps": (["trainer.max_steps=0"], "trainer.max_steps=0 trains nothing"),
    "no train batches": (["+trainer.limit_train_batches=0"], "limit_train_batches=0 trains noth"),
    "no val batches": (
        ["+trainer.limit_val_batches=0"],
        "checkpoint is selected by a metric of val",
    ),
    "validation past the end": (["trainer.check_val_every_n_epoch=3"], "trainer.max_epochs=2"),
    "fast_dev_run": (["+trainer.fast_dev_run=true"], "use trainer.max_epochs=1 with"),
    "overfit_batches": (["+trainer.overfit_batches=2"], "use +trainer.limit_train_batches=N"),
    "no accumulation": (["trainer.accumulate_grad_batches=0"], "set 1 or more"),
    "endless": (["trainer.max_epochs=-1"], "set trainer.max_epochs or trainer.max_steps"),
    "16-true": (["trainer.precision=16-true"], "choose 32-true, 16-mixed, bf16-mixed"),
    "bf16-true": (["trainer.precision=bf16-true"], "choose 32-true, 16-mixed, bf16-mixed"),
    "64-true": (["trainer.precision=64-true"], "choose 32-true, 16-mixed, bf16-mixed"),
    "batches of one": (["loader.batch_size=1"], "batch norm needs at least 2 images"),
    "unknown metric": (
        ["monitor=val_loss"],
        "monitor=val_loss: training logs only val_map_at_r, val_top1, val_recall_at_5, val_eer",
    ),
    "a larger rate of errors": (
        ["monitor=val_eer"],
        "monitor_mode=max: a smaller val_eer is better; set monitor_mode=min",
    ),
    "a smaller precision": (
        ["callbacks=early_stopping", "callbacks.early_stopping.mode=min"],
        "a larger val_map_at_r is better; set callbacks.early_stopping.mode=max",
    ),
    "early stopping": (
        [f"+callbacks.es._target_={EARLY_STOPPING}", "+callbacks.es.monitor=val_loss"],
        "callbacks.es.monitor=val_loss: training logs only val_map_at_r, val_top1",
    ),
    "one dimension": (["embedder.embedding_dim=1"], "must be greater than or equal to 2"),
    "large seed": ([f"seed={2**64}"], f"must be less than {2**64}"),
    "subquantizers": (
        ["index=factory", "index.factory=PQ16", "embedder.embedding_dim=10"],
        "for embeddings of size 10",
    ),
    "no class vectors": (
        ["head=pair_loss", "sampler=hard_classes", "loader.batch_size=48"],
        "sampler=hard_classes compares the class vectors of the head, and PairLoss has none",
    ),
    "groups": (
        ["sampler=hard_classes", "loader.batch_size=24"],
        "the 6 classes of a global batch cannot be divided into groups of 4",
    ),
    "margin of small classes": (
        ["head=arcface_by_size", "head.margin=3.0"],
        "head.margin=3.0 and head.size_margin=0.45 give a class with one image a margin above 3.14",
    ),
    "margin of random margins": (
        ["head=elastic_arcface", "+head.size_margin=0.1"],
        "head.size_margin is unknown",
    ),
    "memory and proxies": (
        ["head=proxy_anchor", "head.memory_size=100"],
        "ProxyAnchorLoss cannot compare a batch with a memory",
    ),
    "codes": (["index=factory", "index.factory=PQ8x2"], "can be trained but not searched"),
}
KNOWN_FROM_THE_STORE = {
    "less than an epoch": (["trainer.max_steps=5"], "an epoch of this store has 6 steps"),
    "interval": (["+trainer.val_check_interval=7"], "more than the 6 training batches"),
    "cells": (
        ["index=ivf_pq", "embedder.embedding_dim=64"],
        "a gallery of 90 images is too small to train the index 'IVF{nlist},PQ32np', which needs",
    ),
    "training rows": (["index=ivf_flat", "index.train_rows=1"], "set index.train_rows=2"),
}


@pytest.mark.parametrize("case", KNOWN_FROM_THE_CONFIG)
def test_what_the_config_shows_is_an_error_before_any_work(in_tmp, capsys, case):
    overrides, message = KNOWN_FROM_THE_CONFIG[case]
    assert main(["run", *SMALL, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not list(in_tmp.iterdir())


@pytest.mark.parametrize("case", KNOWN_FROM_THE_STORE)
def test_what_the_store_shows_is_an_error_before_training(in_tmp, capsys, case):
    overrides, message = KNOWN_FROM_THE_STORE[case]
    assert main(["train", *SMALL, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (in_tmp / "runs/synthetic").exists()


def test_all_faults_of_the_trainer_are_reported_at_once(in_tmp, capsys):
    assert main(["train", *SMALL, "trainer.max_epochs=0", "loader.batch_size=1"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("max_epochs=0", "batch_size=1"))


def test_a_training_of_exactly_one_epoch_with_the_largest_seed_is_complete(in_tmp):
    last = ["trainer.max_steps=6", f"seed={2**64 - 1}", "callbacks=export_only"]
    assert main(["train", *SMALL, *last]) == 0


class Line(pl.LightningModule):
    """Counts its validations."""

    def __init__(self):
        super().__init__()
        self.weight, self.validations = torch.nn.Parameter(torch.zeros(())), 0

    def training_step(self, batch, _):
        return (self.weight - batch).square().sum()

    def validation_step(self, batch, _):
        self.validations += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(**settings):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(monitor="val_top1")], **settings,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("max_steps", range(1, 8))
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"accumulate_grad_batches": 2}, {"check_val_every_n_epoch": 2},
        {"val_check_interval": 0.5}, {"val_check_interval": 2}, {"limit_train_batches": 2},
        {"limit_train_batches": 0.5}, {"val_check_interval": 3, "accumulate_grad_batches": 2},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
    ],
    ids=str,
)  # fmt: skip
def test_the_check_agrees_with_lightning(tmp_path, settings, max_steps):
    """A run is refused if and only if Lightning would end it without a validation."""
    data = torch.utils.data.DataLoader(torch.zeros(5), batch_size=1)
    module, trainer = (
        Line(),
        make_trainer(max_steps=max_steps, default_root_dir=tmp_path, **settings),
    )
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ModelCheckpoint)]
    trainer.fit(module, data, torch.utils.data.DataLoader(torch.zeros(1)))
    try:
        check_first_validation(make_trainer(max_steps=max_steps, **settings), len(data))
    except ConfigError:
        assert module.validations == 0
    else:
        assert module.validations > 0


class KillWorkers(Callback):
    def on_train_batch_start(self, *_):
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)


def test_a_killed_loader_process_is_a_fault_of_the_machine(in_tmp, capsys):
    """This is also how a /dev/shm without space ends."""
    kill = f"+callbacks.kill._target_={KillWorkers.__module__}.KillWorkers"
    assert main(["train", *SMALL, "loader.num_workers=1", kill]) == 1
    error = capsys.readouterr().err
    assert "a process that loads batches ended" in error
    assert "loader.num_workers=0, or give /dev/shm" in error

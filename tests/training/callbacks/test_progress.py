import json
import time
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.training.callbacks.progress import EpochTimer, ProgressBar
from arcloop.training.setup import TrainingSetup


def test_timing_of_a_resumed_epoch_starts_with_training(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    trainer = SimpleNamespace(world_size=2, is_last_batch=True, is_global_zero=True)
    timing = EpochTimer(tmp_path, print_epochs=False)
    now = 100.0  # set-up; then training resumes within an epoch, without on_train_epoch_start
    timing.on_train_start(trainer, None)
    now = 104.0
    timing.on_train_batch_end(trainer, None, None, (None, range(10)), 0)
    timing.on_fit_end(trainer, None)
    recorded = json.loads((tmp_path / ".timing.json").read_bytes())
    assert recorded == {"seconds": 104.0, "per_second": 10 * 2 / 4}


class CountedLoss:
    reads = 0

    def __float__(self):
        self.reads += 1
        return 0.25


def test_progress_bar_reads_the_loss_only_when_it_is_redrawn():
    bar, loss = ProgressBar(), CountedLoss()
    trainer = SimpleNamespace(
        callback_metrics={"train_loss": loss}, progress_bar_metrics={"val_top1": 0.5}, loggers=[]
    )
    for trainer.global_step in range(1, 31):
        metrics = bar.get_metrics(trainer, None)
    assert metrics == {"val_top1": 0.5, "train_loss": 0.25}
    assert loss.reads == 3


class Steps(Callback):
    def __init__(self):
        self.reads = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.reads.append(0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_without_logging_read_no_value_from_the_device(in_tmp, monkeypatch, precision):
    """Each read would wait until the GPU has computed it."""
    steps, make_trainer, item = Steps(), TrainingSetup.make_trainer, torch.Tensor.item

    def counted_item(tensor):
        if steps.reads:
            steps.reads[-1] += 1
        return item(tensor)

    monkeypatch.setattr(TrainingSetup, "make_trainer", lambda s, *c: make_trainer(s, *c, steps))
    monkeypatch.setattr(torch.Tensor, "item", counted_item)
    options = [
        "trainer.log_every_n_steps=2",
        "trainer.max_epochs=1",
        f"trainer.precision={precision}",
    ]
    assert main(["train", *SMALL, *options, "callbacks=export_only", "callbacks.export=null"]) == 0
    assert len(steps.reads) == 6
    assert steps.reads[1] > 0, "the second step is logged"
    assert [steps.reads[step] for step in (0, 2, 4)] == [0] * 3

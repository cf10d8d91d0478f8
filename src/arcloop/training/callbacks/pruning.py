"""The callback that reports the epochs of a job to the pruner of its sweep."""

from __future__ import annotations

from typing import Protocol

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from arcloop.distributed.process_group import current_process_group
from arcloop.errors import TrainingPruned


class Report(Protocol):
    """Reports the monitored metric of an epoch; returns the decision to prune, or None."""

    def __call__(self, epoch: int, value: float, *, is_last: bool) -> TrainingPruned | None: ...


class ReportEpochs(Callback):
    """Reports the monitored metric after every epoch with a validation.

    Rank zero reports, and all ranks follow the decision.

    Args:
        monitor: Name of the metric.
        report: Called with the number of completed epochs, the metric, and whether the training
            ends after this epoch.

    Raises:
        TrainingPruned: The decision was to end the training.
    """

    def __init__(self, monitor: str, report: Report) -> None:
        self._monitor, self._report = monitor, report
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self._monitor)
        if not self._validated or value is None:
            return
        self._validated = False
        epoch, number = trainer.current_epoch + 1, float(value)
        is_last = (
            epoch == trainer.max_epochs
            or trainer.global_step == trainer.max_steps
            or trainer.should_stop
        )
        decision = current_process_group().broadcast(
            lambda: self._report(epoch, number, is_last=is_last)
        )
        if decision is not None:
            raise decision

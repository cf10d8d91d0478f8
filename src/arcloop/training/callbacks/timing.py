"""How long a fit took, noted beside its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from arcloop.artifacts import timings


class Timing(Callback):
    """Notes how long the fit took, and images per second of the training batches alone."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._fit = self._epoch = timings.Stopwatch()
        self._images, self._seconds = 0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch = timings.Stopwatch()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += len(batch[1]) * trainer.world_size
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._seconds += self._epoch.seconds

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self._seconds:
            timings.note(self._run_dir, self._fit.seconds, self._images / self._seconds)

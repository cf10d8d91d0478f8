"""Progress of the fit: a Rich bar on a terminal, one line per epoch in a log; its duration."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar

from arcloop.artifacts.timings import record_timing
from arcloop.display.terminal import print_line

_REFRESH_BATCHES = 10


class ProgressBar(RichProgressBar):
    """Rich bar that reads the training loss from the device only when the bar is redrawn.

    `self.log(..., prog_bar=True)` would read the value after every step and wait for the GPU.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=_REFRESH_BATCHES, console_kwargs={"stderr": True})
        self._loss: dict[str, float] = {}

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the metrics to display."""
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None and trainer.global_step % _REFRESH_BATCHES == 0:
            self._loss = {"train_loss": float(loss)}
        return {**super().get_metrics(trainer, pl_module), **self._loss}


class EpochTimer(Callback):
    """Records the duration of the fit and the images per second of its training batches.

    Args:
        run_dir: Folder of the run.
        print_epochs: Print one line per epoch with its metrics and its duration.
    """

    def __init__(self, run_dir: Path, *, print_epochs: bool) -> None:
        self._run_dir, self._print_epochs = run_dir, print_epochs
        self._fit = self._epoch = time.monotonic()
        self._images, self._seconds = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning does not call on_train_epoch_start for an epoch that is resumed.
        self._epoch = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += len(batch[1]) * trainer.world_size
        if trainer.is_last_batch:
            self._seconds += time.monotonic() - self._epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._print_epochs and trainer.is_global_zero:
            metrics = "  ".join(
                f"{name} {float(value):.4f}"
                for name, value in trainer.callback_metrics.items()
                if not name.startswith("lr-")
            )
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print_line(f"{epoch}: {metrics}  {time.monotonic() - self._epoch:.1f} s")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self._seconds:
            seconds = time.monotonic() - self._fit
            record_timing(self._run_dir, seconds, self._images / self._seconds)

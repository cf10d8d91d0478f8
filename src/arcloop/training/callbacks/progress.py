"""Progress of the fit: Lightning's Rich bar for a person, a line an epoch for a log."""

from __future__ import annotations

import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar

from arcloop.display.terminal import say

_REFRESH_BATCHES = 10


def bar() -> Callback:
    """Return the bar, refreshed seldom enough not to be felt."""
    return RichProgressBar(refresh_rate=_REFRESH_BATCHES, console_kwargs={"stderr": True})


class EpochLines(Callback):
    """Says a line an epoch."""

    def __init__(self) -> None:
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()  # going on within an epoch, none is started

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            figures = "  ".join(
                f"{name} {float(value):.4f}"
                for name, value in trainer.callback_metrics.items()
                if not name.startswith("lr-")
            )
            seconds = time.monotonic() - self._start
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            say(f"{epoch}: {figures}  {seconds:.1f} s")

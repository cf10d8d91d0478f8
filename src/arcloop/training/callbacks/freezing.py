"""Freezing of the backbone during the first epochs."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from arcloop.config.value_types import PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.training.module import EmbeddingModule


class FreezeBackbone(Callback):
    """Trains only neck and head during the first epochs, then the backbone as well.

    While the backbone is frozen, it runs in evaluation mode and without a graph: its weights and
    its batch-norm statistics do not change, and a step costs only its forward pass. Whether it is
    frozen depends only on the epoch, so resuming a run does not change the result.
    `requires_grad` does not change, so the optimizer and DDP contain all weights from the start.

    Args:
        epochs: Number of epochs with a frozen backbone; `trainer.max_epochs` freezes it throughout.
    """

    @checked("callbacks.freeze")
    def __init__(self, *, epochs: PositiveInt) -> None:
        self._epochs = epochs

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning does not call on_train_epoch_start for an epoch that is resumed.
        assert isinstance(pl_module, EmbeddingModule)
        frozen = trainer.current_epoch < self._epochs
        if frozen != pl_module.backbone_frozen:
            pl_module.backbone_frozen = frozen
            pl_module.embedder.backbone.train(not frozen)
            epoch = trainer.current_epoch + 1
            print_line(f"train: epoch {epoch} {'freezes' if frozen else 'unfreezes'} the backbone")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Exclude a frozen backbone from the step, including weight decay and momentum."""
        assert isinstance(pl_module, EmbeddingModule)
        if pl_module.backbone_frozen:
            for parameter in pl_module.embedder.backbone.parameters():
                parameter.grad = None

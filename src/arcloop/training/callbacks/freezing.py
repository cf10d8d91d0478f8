"""A backbone held still for the first epochs, while what is new beside it learns."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from arcloop.config.value_types import PositiveInt, check
from arcloop.display.terminal import say
from arcloop.training.module import EmbeddingModule


class FreezeBackbone(Callback):
    """Trains neck and head alone for the first epochs, then the backbone too.

    While it is frozen the backbone runs in evaluation mode and without a graph: its weights, and
    the statistics of its batch norms, stay what they are, and a step costs a forward pass of it.
    Whether it is frozen is a function of the epoch alone, so a run that goes on from a checkpoint
    does what it would have done. `requires_grad` is never touched: optimizer and DDP hold every
    weight from the start, and nothing has to be told to them when the backbone is set free.

    Args:
        epochs: Epochs for which the backbone is frozen; as many as `trainer.max_epochs`: for all.
    """

    def __init__(self, *, epochs: PositiveInt) -> None:
        check("callbacks.freeze", epochs=(epochs, PositiveInt))
        self._epochs = epochs

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # By batch, not by epoch: a run that goes on within an epoch does not start one.
        assert isinstance(pl_module, EmbeddingModule)
        frozen = trainer.current_epoch < self._epochs
        if frozen != pl_module.backbone_frozen:
            pl_module.backbone_frozen = frozen
            pl_module.embedder.backbone.train(not frozen)
            say(f"train: the backbone is {'frozen' if frozen else 'trained'} from here on")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Leave the backbone out of the step: no weight decay, no momentum, no state."""
        assert isinstance(pl_module, EmbeddingModule)
        if pl_module.backbone_frozen:
            for parameter in pl_module.embedder.backbone.parameters():
                parameter.grad = None

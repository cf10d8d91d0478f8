"""Warm-up of the margin and the scale of a head, and freezing of the backbone."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from arcloop.config.value_types import PositiveFloat, PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError
from arcloop.models import CosineClassifier, Head
from arcloop.training.module import EmbeddingModule


class Warmup(Callback):
    """Changes a head's margin and scale linearly over the first optimizer steps.

    Both depend only on the number of completed optimizer steps, so resuming a run does not change
    them. If its steps are None, the margin or the scale has the value of the head's config.

    Args:
        margin_steps: Steps until the full margin; the first step uses a margin of 0.
        scale_from: Scale of the first step; may be larger than the head's scale.
        scale_steps: Steps until the head's scale.

    Raises:
        ConfigError: Only one of `scale_from` and `scale_steps` is given.
    """

    @checked("callbacks.warmup")
    def __init__(
        self,
        *,
        margin_steps: PositiveInt | None,
        scale_from: PositiveFloat | None,
        scale_steps: PositiveInt | None,
    ) -> None:
        if (scale_from is None) != (scale_steps is None):
            raise ConfigError(
                f"callbacks.warmup: scale_from={scale_from}, but scale_steps={scale_steps}",
                remedy="give both, or null for both",
            )
        self._margin_steps, self._scale_steps = margin_steps, scale_steps
        self._scale_from = scale_from

    def check_head(self, head: Head) -> None:
        """Check that a head has the margin or scale that is to be warmed up.

        Raises:
            ConfigError: The head has no margin, or its scale is not configurable.
        """
        wanted = {"margin": self._margin_steps, "scale": self._scale_steps}
        for name, steps in wanted.items():
            if steps is not None and name not in head.warmable:
                raise ConfigError(
                    f"{type(head).__name__} has no {name} to warm up",
                    where=f"callbacks.warmup.{name}_steps={steps}",
                    remedy=f"set it to null{', and scale_from' if name == 'scale' else ''}, or"
                    " choose another head",
                )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, EmbeddingModule)
        self.check_head(pl_module.head)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, EmbeddingModule)
        head, step = pl_module.head, trainer.global_step
        if not isinstance(head, CosineClassifier):
            return  # `check_head` ensures that neither margin nor scale is warmed up
        if self._margin_steps is not None:
            head.set_warmup(margin=min(step / self._margin_steps, 1.0))
        if self._scale_from is not None and self._scale_steps is not None:
            progress = min(step / self._scale_steps, 1.0)
            scale = self._scale_from + progress * (head.full_scale - self._scale_from)
            head.set_warmup(scale=scale)


class FreezeBackbone(Callback):
    """Trains only neck and head during the first epochs, and then also the backbone.

    While the backbone is frozen, it runs in evaluation mode and without a graph: its weights and
    its batch-norm statistics do not change, and a step costs only its forward pass. Whether it is
    frozen depends only on the epoch, so resuming a run does not change the result.
    `requires_grad` does not change, so the optimizer and DDP contain all weights from the start.

    Args:
        epochs: Number of epochs with a frozen backbone; from `trainer.max_epochs` on, all of them.
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

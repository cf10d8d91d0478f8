"""The LightningModule: augment, embed, take the head's loss; judge by neighbours within val."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from arcloop.errors import ConfigError, DivergedError
from arcloop.models import Embedder, Head, ShardedArcFace
from arcloop.training.augmentation import Augmentation
from arcloop.training.frozen_features import frozen_features
from arcloop.training.neighbours import leave_one_out_top1
from arcloop.training.optim import sharding
from arcloop.training.optim.optimizers import GroupedOptimizer

Batch = tuple[Tensor, Tensor]


class EmbeddingModule(pl.LightningModule):
    """Trains an embedder under a margin head.

    Args:
        embedder: What is trained to be kept.
        head: What it is trained under, and thrown away.
        augmentation: Applied to training batches where the batch lies.
        optimizer: Makes the optimizer of both.
        scheduler: Makes the learning-rate schedule from (optimizer, total steps).
        seed: All randomness of a batch is a function of it, of epoch, batch and rank, so that a
            resumed run draws what the uninterrupted one would have drawn.
    """

    def __init__(
        self,
        embedder: Embedder,
        head: Head,
        *,
        augmentation: Augmentation,
        optimizer: GroupedOptimizer,
        scheduler: Callable[[torch.optim.Optimizer, int], Any],
        seed: int,
    ) -> None:
        super().__init__()
        self.embedder, self.head, self.augmentation = embedder, head, augmentation
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._seed = seed
        self.backbone_frozen = False  # set by callbacks.freeze
        self._val: list[Batch] = []

    def setup(self, stage: str) -> None:
        """Split the head now that the process group is up; DDP has to leave its parts alone.

        Raises:
            ConfigError: The weights are to be averaged too, which takes whole ones.
        """
        if isinstance(self.head, ShardedArcFace):
            if any(isinstance(c, WeightAveraging) for c in self._callbacks()):
                raise ConfigError(
                    "weights cannot be averaged while the head is split",
                    where="head=arcface_sharded, callbacks.ema",
                    remedy="use head=arcface, or leave callbacks.ema out",
                )
            self.head.split()
            self._ddp_params_and_buffers_to_ignore = [sharding.HEAD_WEIGHT]

    def _callbacks(self) -> Sequence[pl.Callback]:
        callbacks: Sequence[pl.Callback] = getattr(self.trainer, "callbacks", [])
        return callbacks

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self.embedder, self.head)
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._make_scheduler(optimizer, total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images_BCHW, labels_B = batch
        seed = batch_seed(self._seed, self.current_epoch, batch_idx, self.global_rank)
        seed_batch(seed, images_BCHW.device)
        pixels_BCHW = self.augmentation(images_BCHW.float(), torch.default_generator)
        if isinstance(self.head, ShardedArcFace):
            self.head.at_step(self._seed, self.global_step)
        loss: Tensor = self.head(self._features(pixels_BCHW), labels_B)
        if self._is_logged():
            self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def _is_logged(self) -> bool:
        """Whether the loss of this step is told: to a logger, or to who asks after an epoch.

        Lightning's `log` costs more than the optimizer's step of a small network, at every step.
        """
        trainer, done = self.trainer, self.global_step + 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set out of sight
        return (
            (every > 0 and done % every == 0)
            or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            or done == trainer.max_steps
        )

    def _features(self, pixels_BCHW: Tensor) -> Tensor:
        if self.backbone_frozen:
            return frozen_features(self.embedder, pixels_BCHW)
        return self.embedder.features(pixels_BCHW)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if not isinstance(self.head, ShardedArcFace) or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            sharding.clip_by_value(optimizer, gradient_clip_val)
        else:
            sharding.clip_by_norm(optimizer, self.head, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.head, ShardedArcFace):
            sharding.hold_whole_head(checkpoint, self.head)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.head, ShardedArcFace):
            sharding.hold_own_shard(checkpoint, self.head)

    def on_train_epoch_end(self) -> None:
        loss = float(self.trainer.callback_metrics.get("train_loss", 0.0))  # none: stopped early
        if not math.isfinite(loss):
            raise DivergedError(
                f"training diverged: the loss is {loss} after step {self.global_step}",
                remedy="lower optimizer.lr or head.scale, or lengthen scheduler.warmup",
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images_BCHW, labels_B = batch
        self._val.append((self.embedder(images_BCHW), labels_B))

    def on_validation_epoch_end(self) -> None:
        embeddings_nD, labels_n = (torch.cat(parts) for parts in zip(*self._val, strict=True))
        self._val.clear()
        # The same value on every rank: nothing is left to average.
        self.log("val_top1", leave_one_out_top1(embeddings_nD, labels_n), prog_bar=True)


def seed_batch(seed: int, device: torch.device) -> None:
    """Seed the generators that a batch on this device draws from.

    On a CPU `torch.manual_seed` would also keep the call, with a stack trace, for each kind of
    device that is not there: a tenth of a millisecond, and memory that grows with every step.
    """
    if device.type != "cpu":
        torch.manual_seed(seed)
    torch.default_generator.manual_seed(seed)


def batch_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Mix the run's seed with a batch's place into one seed, in [0, 2^63)."""
    place = b"%d %d %d %d" % (seed, epoch, batch, rank)
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big") >> 1

"""The LightningModule: augmentation, embedder, head and loss; leave-one-out metrics on val.

Shapes: B batch, C channels, H height, W width, D embedding dimension, n rows of this process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from arcloop.distributed.collectives import gather_shards
from arcloop.errors import ConfigError, DivergedError
from arcloop.models import Embedder, Head, ShardedArcFace
from arcloop.training import sharded
from arcloop.training.augmentation import Augmentation
from arcloop.training.val_metrics import val_metrics

Batch = tuple[Tensor, Tensor]
_IN_PROGRESS_BAR = ("val_map_at_r", "val_top1")
_LEAST_LOGGED, _LOGGED_OF_SHORT_RUN = 3, 50  # steps


class EmbeddingModule(pl.LightningModule):
    """Trains an embedder with a margin head.

    Args:
        embedder: The model that is exported after training.
        head: Computes the loss from embeddings and labels; only needed for training.
        augmentation: Applied to training batches on the device of the batch.
        optimizer: Makes the optimizer of embedder and head.
        scheduler: Makes the learning-rate schedule from (optimizer, total steps).
        seed: The random numbers of a batch depend only on this seed, the epoch, the batch index
            and the rank, so resuming a run does not change them.

    Attributes:
        backbone_frozen: Whether the backbone computes no gradient; set by `FreezeBackbone`.
    """

    def __init__(
        self,
        embedder: Embedder,
        head: Head,
        *,
        augmentation: Augmentation,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer, int], Any],
        seed: int,
    ) -> None:
        super().__init__()
        self.embedder, self.head, self.augmentation = embedder, head, augmentation
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._seed = seed
        self.backbone_frozen = False
        self._val: list[Batch] = []
        self._unchecked: list[tuple[int, Tensor]] = []  # steps and their losses, on the device

    def setup(self, stage: str) -> None:
        """Shard the head once the process group exists, and exclude large tensors from DDP.

        Raises:
            ConfigError: A callback averages the weights, which requires an unsharded head.
        """
        # DDP would send buffers from rank 0 in every step. Those of a head are equal on all ranks.
        large = (name for name, buffer in self.head.named_buffers() if buffer.ndim > 0)
        ignored = [f"head.{name}" for name in large]
        if isinstance(self.head, ShardedArcFace):
            callbacks: Sequence[pl.Callback] = getattr(self.trainer, "callbacks", [])
            if any(isinstance(callback, WeightAveraging) for callback in callbacks):
                raise ConfigError(
                    "weights cannot be averaged while the head is sharded",
                    where="head=arcface_sharded, callbacks.ema",
                    remedy="use head=arcface, or leave callbacks.ema out",
                )
            self.head.initialize_shard()
            ignored.append(sharded.HEAD_WEIGHT)
        # There is no public way to exclude a tensor from DDP, which reads this attribute:
        # https://github.com/pytorch/pytorch/issues/43690
        self._ddp_params_and_buffers_to_ignore = ignored

    def make_optimizer(self, head: torch.nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer of the embedder and a head."""
        return self._make_optimizer(self.embedder, head)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.head)
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self._make_scheduler(optimizer, total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Log more often if the run would log the loss in fewer than 3 steps."""
        trainer, total = self.trainer, self.trainer.estimated_stepping_batches
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set dynamically
        if total < _LEAST_LOGGED * every:
            trainer.log_every_n_steps = max(1, int(total) // _LOGGED_OF_SHORT_RUN)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images_BCHW, labels_B = batch
        seed = batch_seed(self._seed, self.current_epoch, batch_idx, self.global_rank)
        seed_generators(seed, images_BCHW.device)
        pixels_BCHW = self.augmentation(images_BCHW.float(), torch.default_generator)
        if isinstance(self.head, ShardedArcFace):
            self.head.set_step(self._seed, self.global_step)
        if self.backbone_frozen:
            features_BD = frozen_features(self.embedder, pixels_BCHW)
        else:
            features_BD = self.embedder.features(pixels_BCHW)
        loss: Tensor = self.head(features_BD, labels_B)
        is_logged = self._is_logged(batch_idx)
        self._unchecked.append((self.global_step + 1, loss.detach()))
        # Reading the loss of a GPU waits for the step, so it is read only when it is logged.
        if is_logged or loss.device.type == "cpu":
            self._require_finite_losses()
        if is_logged:
            # With prog_bar=True, Lightning would read the loss from the device at every step.
            self.log("train_loss", loss, sync_dist=True)
        return loss

    def _is_logged(self, batch_idx: int) -> bool:
        """Return whether the loss of this step is logged: also before a validation or the end."""
        trainer, done = self.trainer, self.global_step + 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set dynamically
        if every > 0 and done % every == 0:
            return True
        if trainer.check_val_every_n_epoch is None:
            batch_idx = trainer.fit_loop.epoch_loop.total_batch_idx
        is_validated = (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        return is_validated or trainer.is_last_batch or done == trainer.max_steps

    def _require_finite_losses(self) -> None:
        """Raise an error with the first step whose loss is not finite, of those not yet checked."""
        steps, losses = zip(*self._unchecked, strict=True)
        self._unchecked.clear()
        for step, loss in zip(steps, torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"training diverged: the loss is {loss} in step {step}, epoch"
                    f" {self.current_epoch + 1}",
                    remedy="lower optimizer.lr or head.scale, or lengthen scheduler.warmup",
                )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if not isinstance(self.head, ShardedArcFace) or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            by_value = gradient_clip_algorithm == "value"
            sharded.clip_gradients(optimizer, self.head, gradient_clip_val, by_value=by_value)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.head, ShardedArcFace):
            sharded.gather_head_state(checkpoint, self.head)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.head, ShardedArcFace):
            sharded.shard_head_state(checkpoint, self.head)

    def gather_class_vectors(self) -> Tensor | None:
        """Return the head's vectors of all classes on rank 0, float32 [C, D] on the CPU, else None.

        Collective: every rank must call it.
        """
        vectors_CD = self.head.class_vectors()
        assert vectors_CD is not None  # `TrainingSetup.dry_run` checks this
        if isinstance(self.head, ShardedArcFace):
            return gather_shards(vectors_CD, self.head.num_classes)
        return vectors_CD.detach().cpu() if self.global_rank == 0 else None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images_BCHW, labels_B = batch
        self._val.append((self.embedder(images_BCHW), labels_B))

    def on_validation_epoch_end(self) -> None:
        embeddings_nD, labels_n = (torch.cat(parts) for parts in zip(*self._val, strict=True))
        self._val.clear()
        # The values are equal on all ranks, so sync_dist is not needed.
        for name, value in val_metrics(embeddings_nD, labels_n).items():
            self.log(name, value, prog_bar=name in _IN_PROGRESS_BAR)


def batch_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """Hash the run's seed and the position of a batch to a seed in [0, 2^63)."""
    position = b"%d %d %d %d" % (seed, epoch, batch, rank)
    return int.from_bytes(hashlib.blake2b(position, digest_size=8).digest(), "big") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a batch on this device uses.

    On a CPU this avoids `torch.manual_seed`, which stores a deferred call with its stack trace for
    every device type that is not initialised, so memory would grow at every step.
    """
    if device.type != "cpu":
        torch.manual_seed(seed)
    torch.default_generator.manual_seed(seed)


def frozen_features(embedder: Embedder, pixels_BCHW: Tensor) -> Tensor:
    """Compute `embedder.features` without a graph of the backbone.

    The backbone's parameters get a gradient of 0, because DDP waits for the gradients of all
    parameters.
    """
    with torch.no_grad():
        map_BCHW = embedder.feature_map(pixels_BCHW)
    trained = [p for p in embedder.backbone.parameters() if p.requires_grad]
    return embedder.project(map_BCHW + sum(0 * p.sum() for p in trained))

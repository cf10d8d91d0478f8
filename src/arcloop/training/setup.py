"""The objects of one training run, built from the config before any work starts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from arcloop.config.schema import BackboneWeightsSettings, CalibrationSettings, LoaderSettings
from arcloop.data import EmbeddingDataModule, EpochBatches
from arcloop.data.loading.hard_classes import HardClassBatches
from arcloop.data.splits.held_out import choose_held_out_classes
from arcloop.display.terminal import console, print_line
from arcloop.distributed.batch_norm import SynchronizedBatchNorm
from arcloop.errors import ConfigError
from arcloop.export.formats import Exports, extra_formats, ignore_warnings
from arcloop.models import Embedder, Head, fit_weights, load_weights, read_weights
from arcloop.models.checkpoints import AtomicCheckpointIO
from arcloop.models.embedder import construct, make_backbone, make_embedder
from arcloop.retrieval.unknown_images import UnknownImages
from arcloop.training.augmentation import Augmentation
from arcloop.training.callbacks.post_fit import BuildIndex
from arcloop.training.callbacks.progress import ProgressBar
from arcloop.training.callbacks.stages import Warmup
from arcloop.training.module import EmbeddingModule
from arcloop.training.preconditions import check_trainer

NODES = (
    "loader", "sampler", "augmentation", "backbone", "backbone_weights", "embedder", "head",
    "optimizer", "scheduler", "trainer", "logger", "callbacks", "export", "calibration",
)  # fmt: skip
"""The config nodes that `TrainingSetup` takes, under the same names."""
_DRY_RUN_IMAGE_SHAPE = (224, 224, 1)
_LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning_fabric")
_IGNORED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # the loader gathers a batch in one call
    "The number of training batches",  # an epoch may be shorter than the logging interval
    "You're resuming from a checkpoint that ended",  # the trainer has the position in the epoch
    "Be aware that when using `ckpt_path`",  # resume=true without early stopping
    "Checkpoint directory .* exists and is not empty",  # the run is resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # a call in Lightning
    "GPU available but not used",  # trainer=cpu
    "It is recommended to use `self.log\\(.*sync_dist=True",  # the metrics of val are equal
)


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Everything that defines a training run, except the data.

    Attributes:
        seed: Seed of all random number generators.
        monitor: Metric that selects the best checkpoint.
        compile: Run the backbone through torch.compile during training.
        loader: Settings of the data loaders.
        sampler: Makes the training batches from labels, batch size, world size and seed.
        augmentation: Applied to training batches.
        backbone: Makes the backbone; `in_channels` and `image_size` are passed if it takes them.
        backbone_weights: Initial weights of the backbone.
        embedder: Makes the embedder from a backbone and `image_shape`.
        head: Makes the head from `embedding_dim` and `num_classes`.
        optimizer: Makes the optimizer of embedder and head.
        scheduler: Makes the learning-rate schedule from (optimizer, total steps).
        trainer: Makes the Trainer from callbacks and loggers.
        logger: Name -> logger; None entries are skipped.
        callbacks: Name -> callback, in call order; None entries are skipped.
        export: Name -> export format; None entries are skipped.
        calibration: Which classes are left out of training.
    """

    seed: int
    monitor: str
    compile: bool = False
    loader: LoaderSettings
    sampler: Callable[..., EpochBatches]
    augmentation: Augmentation
    backbone: Callable[..., nn.Module]
    backbone_weights: BackboneWeightsSettings
    embedder: Callable[..., Embedder]
    head: Callable[..., Head]
    optimizer: Callable[..., torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer, int], Any]
    trainer: Callable[..., pl.Trainer]
    logger: Mapping[str, Logger | None]
    callbacks: Mapping[str, Callback | None]
    export: Exports
    calibration: CalibrationSettings

    def make_datamodule(self, store: Path) -> EmbeddingDataModule:
        """Make the datamodule of the store in this folder."""
        hold_out = partial(choose_held_out_classes, settings=self.calibration, seed=self.seed)
        return EmbeddingDataModule(store, self.loader, self.sampler, self.seed, hold_out)

    def make_module(self, image_shape: tuple[int, int, int], num_classes: int) -> EmbeddingModule:
        """Make the LightningModule with weights initialised from `seed` and `backbone_weights`.

        Args:
            image_shape: (H, W, C) of the store.
            num_classes: Number of classes that are trained on.

        Raises:
            ConfigError: A constructor rejects its values, the images are too small, or the
                backbone's weights do not fit.
        """
        torch.manual_seed(self.seed)
        embedder = make_embedder(self.backbone, self.embedder, image_shape)
        head = construct("head", self.head, embedding_dim=embedder.embedding_dim,
                     num_classes=num_classes)  # fmt: skip
        for caution in head.cautions():
            print_line(f"train: {caution}")
        if (file := self.find_weights(embedder.backbone)) is not None:
            for caution in getattr(embedder.backbone, "cautions", list)():
                print_line(f"note: {caution}")
            strict = self.backbone_weights.strict
            report = load_weights(embedder.backbone, read_weights(file), file=file, strict=strict)
            print_line(f"train: backbone weights from {file}: {report}")
        if adapted := getattr(embedder.backbone, "add_adapters", str)():
            print_line(f"train: {adapted}")
        if self.compile:
            embedder.backbone.compile()  # in place: the names of the weights do not change
        return EmbeddingModule(
            embedder,
            head,
            augmentation=self.augmentation,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            seed=self.seed,
        )

    def find_weights(self, backbone: nn.Module | None = None) -> Path | None:
        """Return the file of the backbone's initial weights; None if they are random.

        Args:
            backbone: The backbone, on any device; None to make one.

        Raises:
            ConfigError: Published weights are requested, but do not exist or cannot be downloaded.
        """
        if not self.backbone_weights.pretrained:
            return None if (file := self.backbone_weights.file) is None else Path(file)
        if backbone is None:
            backbone = self._meta_backbone(_DRY_RUN_IMAGE_SHAPE)
        if not hasattr(backbone, "published_file"):
            raise ConfigError(
                f"{type(backbone).__name__} has no published weights",
                where="backbone_weights.pretrained=true",
                remedy="set it to false, or choose backbone=timm",
            )
        found: Path = backbone.published_file()  # type: ignore[operator]
        return found

    def _meta_backbone(self, image_shape: tuple[int, int, int]) -> nn.Module:
        with torch.device("meta"):
            return make_backbone(self.backbone, image_shape)

    def make_trainer(self, *extra: Callback) -> pl.Trainer:
        """Make the Trainer; `extra` callbacks run before the configured ones.

        Raises:
            ConfigError: Lightning rejects the values, or the device is not available.
        """
        progress = [ProgressBar()] if console().is_terminal else []
        synced = self._is_synced()
        trainer: pl.Trainer = construct(
            "trainer",
            self.trainer,
            callbacks=[*extra, *progress, *(c for c in self.callbacks.values() if c is not None)],
            enable_progress_bar=console().is_terminal,
            plugins=[AtomicCheckpointIO(), *([SynchronizedBatchNorm()] if synced else [])],
            logger=[logger for logger in self.logger.values() if logger is not None],
        )
        # Deterministic mode fills every new tensor to expose reads of uninitialised memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return trainer

    def check_index(self, dim: int | None, gallery_rows: int | None = None) -> None:
        """Check that the callback that builds the index will be able to, if that is known.

        Args:
            dim: Size of an embedding.
            gallery_rows: Images in the gallery; None if it is not known yet.

        Raises:
            ConfigError: The index does not fit these embeddings.
        """
        for callback in self.callbacks.values():
            if isinstance(callback, BuildIndex) and dim is not None:
                callback.index.check(dim, gallery_rows)

    def _check_unknown_images(self) -> None:
        """Check that the callback that builds the index has enough images of unknown things."""
        for callback in self.callbacks.values():
            if isinstance(callback, BuildIndex) and callback.calibration.unknown is not None:
                UnknownImages(callback.calibration).check()

    def _is_synced(self) -> bool:
        """Return whether batch norm is computed over the batches of all processes."""
        return bool(getattr(self.trainer, "keywords", {}).get("sync_batchnorm", False))

    def dry_run(self, image_shape: tuple[int, int, int] | None = None) -> None:
        """Call every factory once with placeholder shapes, so that wrong values fail immediately.

        Args:
            image_shape: (H, W, C) of the images; None if it is not known yet.

        Raises:
            ConfigError: A constructor rejects its values, or the weights in a file do not fit.
        """
        with silence_lightning():
            backbone = self._meta_backbone(image_shape or _DRY_RUN_IMAGE_SHAPE)
            if (file := self.find_weights(backbone)) is not None:
                state, strict = read_weights(file), self.backbone_weights.strict
                if image_shape is not None:
                    fit_weights(backbone, state, file=file, strict=strict)
            getattr(backbone, "add_adapters", str)()
            modules = nn.ModuleDict({"backbone": backbone})
            optimizer = construct("optimizer", self.optimizer, modules, nn.ParameterList([]))
            construct("scheduler", self.scheduler, optimizer, 10)
            head = construct("head", self.head, embedding_dim=2, num_classes=2)
            for callback in self.callbacks.values():
                if isinstance(callback, Warmup):
                    callback.check_head(head)
            extra_formats(self.export)
            trainer, batch_size = self.make_trainer(), self.loader.batch_size
            world = num_processes(trainer)
            images = batch_size * (world if self._is_synced() else 1)
            check_trainer(trainer, self.callbacks, images)
            self._check_unknown_images()
            self.check_index(getattr(self.embedder, "keywords", {}).get("embedding_dim"))
            labels_N = np.arange(max(2, batch_size) * world)  # enough classes for any sampler
            batches = construct(
                "sampler", self.sampler, labels_N=labels_N, batch_size=batch_size,
                world_size=world, seed=self.seed,
            )  # fmt: skip
            if isinstance(batches, HardClassBatches) and head.class_vectors() is None:
                raise ConfigError(
                    f"sampler=hard_classes compares the class vectors of the head, and"
                    f" {type(head).__name__} has none with this loss",
                    where="sampler, head",
                    remedy="choose sampler=pk, or a head with class vectors, such as arcface or"
                    " proxy_anchor",
                )


def num_processes(trainer: pl.Trainer) -> int:
    """Return the number of processes of a trainer; valid before the process group exists."""
    return trainer.num_devices * trainer.num_nodes


@contextlib.contextmanager
def silence_lightning() -> Iterator[None]:
    """Hide Lightning's log messages and its warnings about choices that are intended here."""
    loggers = [logging.getLogger(name) for name in _LIGHTNING_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with ignore_warnings(_IGNORED_WARNINGS):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

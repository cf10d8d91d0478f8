"""Everything a training is made of, built from the config before work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import nn

from arcloop.config import LoaderSettings
from arcloop.data import EmbeddingDataModule, EpochBatches
from arcloop.errors import ArcloopError, ConfigError
from arcloop.models import Embedder, Head
from arcloop.progress import console
from arcloop.training.augmentation import Augmentation
from arcloop.training.bars import EpochLines, bar
from arcloop.training.checkpoints import AtomicCheckpoints
from arcloop.training.module import EmbeddingModule
from arcloop.training.optimizers import GroupedOptimizer
from arcloop.training.quiet import quiet
from arcloop.training.synced_norm import SyncedBatchNorms

NODES = (
    "loader", "sampler", "augmentation", "backbone", "embedder", "head", "optimizer", "scheduler",
    "trainer", "logger", "callbacks",
)  # fmt: skip
"""The config's nodes that a `Recipe` takes, by the same names."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how; everything but the data.

    Attributes:
        seed: Source of every random number.
        monitor: Metric that selects the checkpoint.
        compile: Run the backbone through torch.compile while training.
        loader: How batches are read.
        sampler: Makes the training batches from labels, batch size, processes and seed.
        augmentation: Applied to training batches.
        backbone: Makes the backbone from `in_channels`.
        embedder: Makes the embedder from a backbone and `image_shape`.
        head: Makes the head from `embedding_dim` and `num_classes`.
        optimizer: Makes the optimizer of embedder and head.
        scheduler: Makes the schedule from (optimizer, total steps).
        trainer: Makes the Trainer from callbacks and loggers.
        logger: Name -> logger; None is left out.
        callbacks: Name -> callback, in order; None is left out.
    """

    seed: int
    monitor: str
    compile: bool = False
    loader: LoaderSettings
    sampler: Callable[..., EpochBatches]
    augmentation: Augmentation
    backbone: Callable[..., nn.Module]
    embedder: Callable[..., Embedder]
    head: Callable[..., Head]
    optimizer: GroupedOptimizer
    scheduler: Callable[[torch.optim.Optimizer, int], Any]
    trainer: Callable[..., pl.Trainer]
    logger: Mapping[str, Logger | None]
    callbacks: Mapping[str, Callback | None]

    def make_datamodule(self, store: Path) -> EmbeddingDataModule:
        """Make the datamodule over the store in this folder."""
        return EmbeddingDataModule(store, self.loader, self.sampler, self.seed)

    def make_module(self, image_shape: tuple[int, int, int], num_classes: int) -> EmbeddingModule:
        """Make the module with weights drawn from `seed`.

        Args:
            image_shape: (H, W, C) of the store.
            num_classes: Classes of the store.

        Raises:
            ConfigError: A constructor refuses its values, or the images are too small.
        """
        torch.manual_seed(self.seed)
        embedder = _call("embedder", self.embedder, self._backbone(image_shape[2]),
                         image_shape=image_shape)  # fmt: skip
        head = _call("head", self.head, embedding_dim=embedder.embedding_dim,
                     num_classes=num_classes)  # fmt: skip
        if self.compile:
            embedder.backbone.compile()  # in place: names of weights stay, and so does forward
        return EmbeddingModule(
            embedder,
            head,
            augmentation=self.augmentation,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            seed=self.seed,
        )

    def make_trainer(self, *extra: Callback) -> pl.Trainer:
        """Make the Trainer; `extra` callbacks come before the configured ones.

        Raises:
            ConfigError: Lightning refuses the trainer's values, or the device is not here.
        """
        progress = [bar()] if console().is_terminal else [EpochLines()]
        synced = getattr(self.trainer, "keywords", {}).get("sync_batchnorm", False)
        trainer: pl.Trainer = _call(
            "trainer",
            self.trainer,
            callbacks=[*extra, *progress, *(c for c in self.callbacks.values() if c is not None)],
            enable_progress_bar=console().is_terminal,
            plugins=[AtomicCheckpoints(), *([SyncedBatchNorms()] if synced else [])],
            logger=[logger for logger in self.logger.values() if logger is not None],
        )
        return trainer

    def rehearse(self) -> None:
        """Call every partial once with stand-in shapes, so that a wrong value fails now.

        Raises:
            ConfigError: A constructor refuses its values.
        """
        with quiet():
            self._rehearse()

    def _rehearse(self) -> None:
        parameter = nn.Parameter(torch.zeros(2, 2))
        stand_in = nn.ParameterList([parameter])
        optimizer = _call("optimizer", self.optimizer, stand_in, nn.ParameterList([]))
        _call("scheduler", self.scheduler, optimizer, 10)
        _call("head", self.head, embedding_dim=2, num_classes=2)
        with torch.device("meta"):
            self._backbone(1)
        trainer = self.make_trainer()
        world, batch_size = processes_of(trainer), self.loader.batch_size
        labels_N = np.arange(max(2, batch_size) * world)  # classes enough for whatever is asked
        _call("sampler", self.sampler, labels_N=labels_N, batch_size=batch_size,
              world=world, seed=self.seed)  # fmt: skip

    def _backbone(self, in_channels: int) -> nn.Module:
        backbone: nn.Module = _call("backbone", self.backbone, in_channels=in_channels)
        return backbone


def processes_of(trainer: pl.Trainer) -> int:
    """Return how many processes a trainer will train in, known before they meet."""
    return trainer.num_devices * trainer.num_nodes


def _call(name: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor from the config; what it objects to is the config's fault."""
    try:
        return factory(*args, **kwargs)
    except ArcloopError:
        raise
    except Exception as cause:  # whatever a library raises on a wrong value
        raise ConfigError(
            f"{name}: {cause}", where=f"config group {name}", remedy="change its values"
        ) from cause

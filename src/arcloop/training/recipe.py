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

from arcloop.config.schema import BackboneWeightsSettings, LoaderSettings
from arcloop.data import EmbeddingDataModule, EpochBatches
from arcloop.display.terminal import console, say
from arcloop.distributed.batch_norm import SyncedBatchNorms
from arcloop.export.export_run import Exports, beside
from arcloop.models import Embedder, Head, load_weights, read_weights
from arcloop.models.building import call, make_backbone, make_embedder
from arcloop.models.checkpoints import AtomicCheckpoints
from arcloop.training.augmentation import Augmentation
from arcloop.training.callbacks.progress import EpochLines, bar
from arcloop.training.callbacks.warmup import Warmup
from arcloop.training.epoch_loop import EpochLoop
from arcloop.training.memory import keep_memory_between_steps
from arcloop.training.module import EmbeddingModule
from arcloop.training.no_profiler import NoProfiler
from arcloop.training.optim.optimizers import GroupedOptimizer
from arcloop.training.quiet import quiet

NODES = (
    "loader", "sampler", "augmentation", "backbone", "backbone_weights", "embedder", "head",
    "optimizer", "scheduler", "trainer", "logger", "callbacks", "export",
)  # fmt: skip
"""The config's nodes that a `Recipe` takes, by the same names."""
_STAND_IN_SHAPE = (224, 224, 1)


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
        backbone: Makes the backbone from those of `in_channels` and `image_size` that it takes.
        backbone_weights: What the backbone starts from.
        embedder: Makes the embedder from a backbone and `image_shape`.
        head: Makes the head from `embedding_dim` and `num_classes`.
        optimizer: Makes the optimizer of embedder and head.
        scheduler: Makes the schedule from (optimizer, total steps).
        trainer: Makes the Trainer from callbacks and loggers.
        logger: Name -> logger; None is left out.
        callbacks: Name -> callback, in order; None is left out.
        export: Name -> what is exported; None is left out.
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
    optimizer: GroupedOptimizer
    scheduler: Callable[[torch.optim.Optimizer, int], Any]
    trainer: Callable[..., pl.Trainer]
    logger: Mapping[str, Logger | None]
    callbacks: Mapping[str, Callback | None]
    export: Exports

    def make_datamodule(self, store: Path) -> EmbeddingDataModule:
        """Make the datamodule over the store in this folder."""
        return EmbeddingDataModule(store, self.loader, self.sampler, self.seed)

    def make_module(self, image_shape: tuple[int, int, int], num_classes: int) -> EmbeddingModule:
        """Make the module with weights drawn from `seed`, those of the backbone from its file.

        Args:
            image_shape: (H, W, C) of the store.
            num_classes: Classes of the store.

        Raises:
            ConfigError: A constructor refuses its values, the images are too small, or the
                backbone's weights do not fit.
        """
        torch.manual_seed(self.seed)
        embedder = make_embedder(self.backbone, self.embedder, image_shape)
        head = call("head", self.head, embedding_dim=embedder.embedding_dim,
                     num_classes=num_classes)  # fmt: skip
        self._load_weights(embedder.backbone)
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
        given = getattr(self.trainer, "keywords", {})
        synced = given.get("sync_batchnorm", False)
        trainer: pl.Trainer = call(
            "trainer",
            self.trainer,
            callbacks=[*extra, *progress, *(c for c in self.callbacks.values() if c is not None)],
            enable_progress_bar=console().is_terminal,
            plugins=[AtomicCheckpoints(), *([SyncedBatchNorms()] if synced else [])],
            logger=[logger for logger in self.logger.values() if logger is not None],
            **({} if given.get("profiler") else {"profiler": NoProfiler()}),
        )
        trainer.fit_loop.epoch_loop = EpochLoop(
            trainer, min_steps=trainer.min_steps, max_steps=trainer.max_steps
        )
        keep_memory_between_steps()
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
        optimizer = call("optimizer", self.optimizer, stand_in, nn.ParameterList([]))
        call("scheduler", self.scheduler, optimizer, 10)
        head = call("head", self.head, embedding_dim=2, num_classes=2)
        for callback in self.callbacks.values():
            if isinstance(callback, Warmup):
                callback.check_head(head)
        with torch.device("meta"):
            make_backbone(self.backbone, _STAND_IN_SHAPE)
        if self.backbone_weights.file is not None:
            read_weights(Path(self.backbone_weights.file))
        beside(self.export)
        trainer = self.make_trainer()
        world, batch_size = processes_of(trainer), self.loader.batch_size
        labels_N = np.arange(max(2, batch_size) * world)  # classes enough for whatever is asked
        call("sampler", self.sampler, labels_N=labels_N, batch_size=batch_size,
             world=world, seed=self.seed)  # fmt: skip

    def _load_weights(self, backbone: nn.Module) -> None:
        if self.backbone_weights.file is None:
            return
        file = Path(self.backbone_weights.file)
        found = load_weights(
            backbone, read_weights(file), file=file, strict=self.backbone_weights.strict
        )
        say(f"train: weights of the backbone from {file}: {found}")


def processes_of(trainer: pl.Trainer) -> int:
    """Return how many processes a trainer will train in, known before they meet."""
    return trainer.num_devices * trainer.num_nodes

"""The LightningDataModule over a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from arcloop.config.schema import LoaderSettings
from arcloop.data.loading.loader import (
    Batch,
    BatchDataset,
    BatchLoader,
    ResidentDataset,
    ResumableLoader,
)
from arcloop.data.loading.sampler import EpochBatches, OrderedBatches
from arcloop.data.loading.split_labels import SplitLabels
from arcloop.data.store.store import Store
from arcloop.distributed.process_group import current_process_group


class EmbeddingDataModule(pl.LightningDataModule):
    """Training and validation batches of a store.

    A batch is (images, labels): uint8 [B, C, H, W], strided as channels_last, and int64 [B].
    The samplers are distributed by themselves: use `Trainer(use_distributed_sampler=False)`.

    Args:
        store_path: Folder of the `store`.
        settings: How batches are read.
        sampler: Makes the training batches from `labels_N`, `batch_size`, `world` and `seed`.
        seed: Of the sampler.
    """

    def __init__(
        self,
        store_path: Path,
        settings: LoaderSettings,
        sampler: Callable[..., EpochBatches],
        seed: int,
    ) -> None:
        super().__init__()
        self._store_path, self._settings = store_path, settings
        self._sampler, self._seed = sampler, seed

    @cached_property
    def store(self) -> Store:
        """The store, opened and verified when first asked for."""
        return Store.open(self._store_path)

    @property
    def num_classes(self) -> int:
        """Number of classes to train on; their labels are the first."""
        return self.store.num_train_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images."""
        return self.store.image_shape

    def make_batches(self, world: int) -> EpochBatches:
        """Make the training batches of `world` processes.

        Raises:
            ConfigError, DataError: The sampler cannot have such batches of this store.
        """
        return self._sampler(
            labels_N=SplitLabels(self.store, "train"),
            batch_size=self._settings.batch_size,
            world=world,
            seed=self._seed,
        )

    def train_dataloader(self) -> ResumableLoader:
        batches = self.make_batches(current_process_group().world_size)
        return ResumableLoader(
            self._dataset("train"), batches, self._settings, self._trained_batches
        )

    def _dataset(self, split: str) -> Dataset[Batch]:
        if not self._settings.on_device:
            return BatchDataset(self.store, split)
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device
        return ResidentDataset(self.store, split, torch.device(device))

    def _trained_batches(self) -> int:
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def val_dataloader(self) -> BatchLoader:
        batches = OrderedBatches(
            rows=self.store.rows("val"), batch_size=self._settings.eval_batch_size
        )
        return BatchLoader(self._dataset("val"), batches, self._settings)

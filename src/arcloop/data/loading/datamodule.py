"""The LightningDataModule of a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from arcloop.config.schema import LoaderSettings
from arcloop.data.loading.loader import (
    Batch,
    BatchDataset,
    BatchLoader,
    OnDeviceDataset,
    ResumableLoader,
)
from arcloop.data.loading.sampler import EpochBatches, OrderedBatches
from arcloop.data.store.store import Store
from arcloop.distributed.process_group import current_process_group


class EmbeddingDataModule(pl.LightningDataModule):
    """Training and validation batches of a store.

    A batch is (images, labels): uint8 [B, C, H, W] in channels_last memory format, and int64 [B].
    The batch samplers divide the rows among the processes themselves, so the trainer needs
    `use_distributed_sampler=False`.

    Args:
        store_path: Folder of the `store`.
        settings: Settings for loading batches.
        sampler: Makes the batch sampler of train from `labels_N`, `batch_size`, `world_size` and
            `seed`.
        seed: Seed of the batch sampler.
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
        """The store, opened and verified at first use."""
        return Store.open(self._store_path)

    @property
    def num_classes(self) -> int:
        """Number of classes in train."""
        return self.store.num_train_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images."""
        return self.store.image_shape

    def make_batches(self, world_size: int) -> EpochBatches:
        """Make the batch sampler of train for `world_size` processes.

        Raises:
            ConfigError, DataError: The sampler's settings do not fit this store.
        """
        return self._sampler(
            labels_N=LazyLabels(self.store, "train"),
            batch_size=self._settings.batch_size,
            world_size=world_size,
            seed=self._seed,
        )

    def train_dataloader(self) -> ResumableLoader:
        batches = self.make_batches(current_process_group().world_size)
        return ResumableLoader(
            self._dataset("train"), batches, self._settings, self._count_trained_batches
        )

    def val_dataloader(self) -> BatchLoader:
        batches = OrderedBatches(
            rows=self.store.rows("val"), batch_size=self._settings.eval_batch_size
        )
        return BatchLoader(self._dataset("val"), batches, self._settings)

    def _dataset(self, split: str) -> Dataset[Batch]:
        if not self._settings.on_device:
            return BatchDataset(self.store, split)
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device
        return OnDeviceDataset(self.store, split, torch.device(device))

    def _count_trained_batches(self) -> int:
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)


class LazyLabels:
    """Labels of a split, int64 [N], which are read only if a sampler uses them.

    `len()` does not read the labels; indexing and `numpy.asarray` do.

    Args:
        store: The store.
        split: One of `SPLITS`.
    """

    def __init__(self, store: Store, split: str) -> None:
        self._store, self._split = store, split

    def __len__(self) -> int:
        return self._store.rows(self._split)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.asarray(self._store.labels(self._split), dtype)

    def __getitem__(self, rows: Any) -> Any:
        return np.asarray(self)[rows]

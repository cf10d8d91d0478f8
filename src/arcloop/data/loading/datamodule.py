"""Datasets and a loader whose items are whole batches, and the LightningDataModule of a store.

With raw stores, no Python code runs per image.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arcloop.config.schema import LoaderSettings
from arcloop.data.loading.hard_classes import HardClassBatches
from arcloop.data.loading.sampler import EpochBatches, OrderedBatches, Rows
from arcloop.data.splits.held_out import trained_labels
from arcloop.data.store import Store
from arcloop.distributed.process_group import current_process_group
from arcloop.errors import ResourceError

Batch = tuple[Tensor, Tensor]
Labels = npt.NDArray[np.int64]
_ROWS_PER_COPY = 4096

# A fork server, the default of Python 3.14 and of some launchers, ends at the SIGTERM that the
# workers ignore, and then they count as ended. joblib's own method cannot start a worker.
_START_METHOD = "fork" if sys.platform == "linux" else "spawn"


class BatchDataset(Dataset[Batch]):
    """A split of a store; `dataset[rows]` is the batch (images, labels) of these rows.

    Args:
        store: The store. Each process opens its own memory maps when it first reads.
        split: One of `SPLITS`.
        label_C: New label of each class; the rows of classes with -1 are left out. None keeps all.
    """

    def __init__(self, store: Store, split: str, label_C: Labels | None = None) -> None:
        self._store, self._split, self._label_C = store, split, label_C
        if label_C is not None:
            self._rows_N = np.flatnonzero(label_C[store.labels(split)] >= 0)

    def __getitem__(self, rows_B: Rows) -> Batch:
        """Return uint8 images [B, C, H, W] in channels_last memory format, and int64 labels [B]."""
        if self._label_C is not None:
            rows_B = self._rows_N[rows_B]
        images_BHWC, labels_B = self._store.gather(self._split, rows_B)
        if self._label_C is not None:
            labels_B = self._label_C[labels_B]
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.from_numpy(labels_B)


class OnDeviceDataset(Dataset[Batch]):
    """A split that is kept on the device as uint8; a batch is read by one index operation there.

    Args:
        store: The store.
        split: One of `SPLITS`.
        device: The device that keeps the split.
        label_C: See `BatchDataset`.

    Raises:
        ResourceError: The split does not fit into the memory of the device.
    """

    def __init__(
        self, store: Store, split: str, device: torch.device, label_C: Labels | None = None
    ) -> None:
        labels_N = select_labels(store, split, label_C)
        rows = len(labels_N)
        size = rows * math.prod(store.image_shape)
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
            raise ResourceError(
                f"loader.on_device=true: {split} needs {size / 2**30:.1f} GiB, but {device} has"
                f" {free / 2**30:.1f} GiB of free memory",
                remedy="pass loader.on_device=false",
            )
        self._images_NHWC = torch.empty(
            (rows, *store.image_shape), dtype=torch.uint8, device=device
        )
        start = 0
        for images_BHWC, labels_B in store.batches(split, _ROWS_PER_COPY):
            if label_C is not None:
                images_BHWC = images_BHWC[label_C[labels_B] >= 0]
            self._images_NHWC[start : start + len(images_BHWC)] = torch.from_numpy(images_BHWC)
            start += len(images_BHWC)
        self._labels_N = torch.from_numpy(labels_N).to(device)

    def __getitem__(self, rows_B: Rows) -> Batch:
        """Return the batch on the device, in the format of `BatchDataset`."""
        indices_B = torch.from_numpy(rows_B).to(self._labels_N.device)
        return self._images_NHWC[indices_B].permute(0, 3, 1, 2), self._labels_N[indices_B]


def select_labels(store: Store, split: str, label_C: Labels | None) -> Labels:
    """Return the new labels of the rows that are kept, see `BatchDataset`."""
    labels_N = store.labels(split)
    if label_C is None:
        return labels_N
    labels_N = label_C[labels_N]
    return labels_N[labels_N >= 0]


class BatchLoader(DataLoader[Batch]):
    """Loads the batches that a batch sampler selects.

    A resumed epoch starts at its first batch that was not trained on. The position comes from the
    trainer and not from the state of the loader, because workers load batches ahead of training,
    and because Lightning restores the state of a loader too late if the number of steps has already
    been computed.

    Args:
        dataset: Returns a batch for an array of rows.
        batches: Yields arrays of rows.
        settings: Number of worker processes and of batches that they load ahead.
        begin_epoch: Is called with an `EpochBatches` when its first batch is requested. It returns
            how many batches of the epoch were trained on.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        batches: Sampler[Rows],
        settings: LoaderSettings,
        begin_epoch: Callable[[EpochBatches], int] = lambda _: 0,
    ) -> None:
        workers = 0 if settings.on_device else settings.num_workers
        super().__init__(
            dataset,
            batch_size=None,  # an item of the dataset is already a batch
            sampler=batches,
            num_workers=workers,
            multiprocessing_context=_START_METHOD if workers else None,
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not settings.on_device,
            collate_fn=_identity,
            worker_init_fn=_ignore_sigterm,
        )
        self._begin_epoch = begin_epoch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # declared as a private class
        # This is a generator, so the position is read when the first batch is requested. By then,
        # Lightning has set the epoch and restored its progress.
        if isinstance(self.sampler, EpochBatches):
            self.sampler.first_batch = self._begin_epoch(self.sampler)
        if self.num_workers or self.pin_memory:
            yield from super().__iter__()
        else:
            # DataLoader's iterator, which only workers and pinning need, costs time per batch.
            yield from (self.dataset[rows_B] for rows_B in self.sampler)


def _identity(batch: Any) -> Any:
    return batch


def _ignore_sigterm(_worker: int) -> None:
    """Ignore SIGTERM in a worker: it must load batches until training has written last.ckpt."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
        hold_out: Returns the names of the classes of a store that are left out of train. The other
            classes are numbered from 0 for the head; val keeps all classes and their labels.

    Attributes:
        class_vectors: Returns the head's vectors of all classes [C, D] on rank 0. All ranks call it
            at the start of an epoch of `HardClassBatches`; set it before training.
    """

    class_vectors: Callable[[], Tensor | None]

    def __init__(
        self,
        store_path: Path,
        settings: LoaderSettings,
        sampler: Callable[..., EpochBatches],
        seed: int,
        hold_out: Callable[[Store], list[str]] = lambda _: [],
    ) -> None:
        super().__init__()
        self._store_path, self._settings = store_path, settings
        self._sampler, self._seed, self._hold_out = sampler, seed, hold_out
        self._mined: dict[str, Any] = {}  # "epoch" and the "classes" mined for it

    @cached_property
    def store(self) -> Store:
        """The store, opened and verified at first use."""
        return Store.open(self._store_path)

    @cached_property
    def held_out_classes(self) -> list[str]:
        """Names of the classes that are left out of train."""
        return self._hold_out(self.store)

    @property
    def num_classes(self) -> int:
        """Number of classes that are trained on: the classes of the head."""
        return self.store.num_train_classes - len(self.held_out_classes)

    @cached_property
    def class_sizes(self) -> Labels:
        """Number of training images of each class that is trained on, int64 [C]."""
        labels_N = select_labels(self.store, "train", self._new_labels)
        return np.bincount(labels_N, minlength=self.num_classes)

    @cached_property
    def _new_labels(self) -> Labels | None:
        held_out = self.held_out_classes
        return trained_labels(self.store, held_out) if held_out else None

    def make_batches(self, world_size: int) -> EpochBatches:
        """Make the batch sampler of train for `world_size` processes.

        Raises:
            ConfigError, DataError: The sampler's settings do not fit this store.
        """
        return self._sampler(
            labels_N=select_labels(self.store, "train", self._new_labels),
            batch_size=self._settings.batch_size,
            world_size=world_size,
            seed=self._seed,
        )

    def train_dataloader(self) -> BatchLoader:
        batches = self.make_batches(current_process_group().world_size)
        return BatchLoader(self._dataset("train"), batches, self._settings, self._begin_epoch)

    def val_dataloader(self) -> BatchLoader:
        batches = OrderedBatches(
            rows=self.store.rows("val"), batch_size=self._settings.eval_batch_size
        )
        return BatchLoader(self._dataset("val"), batches, self._settings)

    def _dataset(self, split: str) -> Dataset[Batch]:
        label_C = self._new_labels if split == "train" else None
        if not self._settings.on_device:
            return BatchDataset(self.store, split, label_C)
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device
        return OnDeviceDataset(self.store, split, torch.device(device), label_C)

    def state_dict(self) -> dict[str, Any]:
        """Return the classes that were mined for the current epoch, for the checkpoint."""
        return self._mined

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._mined = state_dict

    def _begin_epoch(self, batches: EpochBatches) -> int:
        if self.trainer is None:
            return 0
        if isinstance(batches, HardClassBatches) and batches.epoch > 0:
            # An epoch that is resumed has the classes that were mined at its start.
            known = self._mined.get("epoch"), len(self._mined.get("classes", ()))
            if known != (batches.epoch, batches.num_draws):
                self._mined = {"epoch": batches.epoch, "classes": self._mine(batches)}
            batches.classes_T = self._mined["classes"].numpy()
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _mine(self, batches: HardClassBatches) -> Tensor:
        vectors_CD = self.class_vectors()

        def mine_on_rank_zero() -> Tensor:
            assert vectors_CD is not None
            return torch.from_numpy(batches.mine(vectors_CD.numpy()))

        return current_process_group().broadcast(mine_on_rank_zero)

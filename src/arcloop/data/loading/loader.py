"""Datasets and data loaders whose items are whole batches, so that no Python runs per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arcloop.config.schema import LoaderSettings
from arcloop.data.loading.sampler import EpochBatches, Rows
from arcloop.data.store.store import Store
from arcloop.errors import ResourceError

Batch = tuple[Tensor, Tensor]
_ROWS_PER_COPY = 4096


class BatchDataset(Dataset[Batch]):
    """A split of a store; `dataset[rows]` is the batch (images, labels) of these rows.

    Args:
        store: The store. Each process opens its own memory maps when it first reads.
        split: One of `SPLITS`.
    """

    def __init__(self, store: Store, split: str) -> None:
        self._store, self._split = store, split

    def __getitem__(self, rows_B: Rows) -> Batch:
        """Return uint8 images [B, C, H, W] in channels_last memory format, and int64 labels [B]."""
        images_BHWC, labels_B = self._store.gather(self._split, rows_B)
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.from_numpy(labels_B)


class OnDeviceDataset(Dataset[Batch]):
    """A split that is kept on the device as uint8; a batch is read by one index operation there.

    Args:
        store: The store.
        split: One of `SPLITS`.
        device: The device that keeps the split.

    Raises:
        ResourceError: The split does not fit into the memory of the device.
    """

    def __init__(self, store: Store, split: str, device: torch.device) -> None:
        rows = store.rows(split)
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
        for images_BHWC, _ in store.batches(split, _ROWS_PER_COPY):
            self._images_NHWC[start : start + len(images_BHWC)] = torch.from_numpy(images_BHWC)
            start += len(images_BHWC)
        self._labels_N = torch.from_numpy(store.labels(split)).to(device)

    def __getitem__(self, rows_B: Rows) -> Batch:
        """Return the batch on the device, in the format of `BatchDataset`."""
        indices_B = torch.from_numpy(rows_B).to(self._labels_N.device)
        return self._images_NHWC[indices_B].permute(0, 3, 1, 2), self._labels_N[indices_B]


class BatchLoader(DataLoader[Batch]):
    """Loads the batches that a batch sampler selects.

    Args:
        dataset: Returns a batch for an array of rows.
        batches: Yields arrays of rows.
        settings: Number of worker processes and of batches that they load ahead.
    """

    def __init__(
        self, dataset: Dataset[Batch], batches: Sampler[Rows], settings: LoaderSettings
    ) -> None:
        workers = 0 if settings.on_device else settings.num_workers
        super().__init__(
            dataset,
            batch_size=None,  # an item of the dataset is already a batch
            sampler=batches,
            num_workers=workers,
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not settings.on_device,
            collate_fn=_identity,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # declared as a private class
        if self.num_workers or self.pin_memory:
            return super().__iter__()
        # DataLoader's iterator, which only workers and pinning need, adds an overhead per batch.
        return (self.dataset[rows_B] for rows_B in self.sampler)


class ResumableLoader(BatchLoader):
    """A training loader that starts at the first batch of the epoch that was not trained on.

    The position comes from the trainer and not from the state of the loader, because workers load
    batches ahead of training, and because Lightning restores the state of a loader too late if the
    number of steps has already been computed.

    Args:
        dataset: Returns a batch for an array of rows.
        batches: Yields arrays of rows.
        settings: Number of worker processes and of batches that they load ahead.
        count_trained_batches: Returns how many batches of this epoch were trained on. It is called
            when the first batch is requested.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        batches: EpochBatches,
        settings: LoaderSettings,
        count_trained_batches: Callable[[], int],
    ) -> None:
        super().__init__(dataset, batches, settings)
        self._count_trained_batches = count_trained_batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # This is a generator, so the position is read when the first batch is requested. By then,
        # Lightning has set the epoch and restored its progress.
        assert isinstance(self.sampler, EpochBatches)
        self.sampler.first_batch = self._count_trained_batches()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return an empty state; Lightning warns about loaders without this method."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Ignore the state, see `state_dict`."""


def _identity(batch: Any) -> Any:
    return batch

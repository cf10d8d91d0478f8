"""Whole batches from a store to torch, without a line of Python per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arcloop.config.schema import LoaderSettings
from arcloop.data.loading.sampler import EpochBatches
from arcloop.data.store.store import Store
from arcloop.errors import ResourceError

Batch = tuple[Tensor, Tensor]
Rows = npt.NDArray[np.int64]
_RESIDENT_ROWS = 4096
_READ_BYTES = 1 << 18  # at once: stays in a core's own cache until it is handed out


class BatchDataset(Dataset[Batch]):
    """A split whose items are batches: `dataset[rows]` is (images, labels) of those rows.

    Args:
        store: The store; its maps are opened in the process that reads.
        split: One of `SPLITS`.
    """

    def __init__(self, store: Store, split: str) -> None:
        self._store, self._split = store, split

    def __getitem__(self, rows: Rows) -> Batch:
        """Return uint8 [B, C, H, W], strided as channels_last, and int64 [B]."""
        images_BHWC, labels_B = self._store.gather(self._split, rows)
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.from_numpy(labels_B)

    def read(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the batches of these rows; small ones are read a few at a time.

        A batch of 64 small images is copied faster than Python asks for it.
        """
        batches = iter(batches)
        image_bytes = math.prod(self._store.image_shape)
        for rows in batches:
            more = _READ_BYTES // max(1, len(rows) * image_bytes) - 1
            if more > 0:
                yield from self._together([rows, *islice(batches, more)])
            else:
                yield self[rows]

    def _together(self, group: list[Rows]) -> Iterator[Batch]:
        images, labels = self[np.concatenate(group)]
        sizes = [len(rows) for rows in group]
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)


class ResidentDataset(Dataset[Batch]):
    """A split that lives on the device as a whole, uint8; a batch is one gather there.

    Args:
        store: The store.
        split: One of `SPLITS`.
        device: Where to keep it.

    Raises:
        ResourceError: It does not fit there.
    """

    def __init__(self, store: Store, split: str, device: torch.device) -> None:
        rows = store.rows(split)
        size = rows * math.prod(store.image_shape)
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
            raise ResourceError(
                f"{split} needs {size / 2**30:.1f} GiB, but {device} has {free / 2**30:.1f} free",
                remedy="leave loader.on_device=false",
            )
        self._images_NHWC = torch.empty(
            (rows, *store.image_shape), dtype=torch.uint8, device=device
        )
        start = 0
        for images_BHWC, _ in store.batches(split, _RESIDENT_ROWS):
            self._images_NHWC[start : start + len(images_BHWC)] = torch.from_numpy(images_BHWC)
            start += len(images_BHWC)
        self._labels_N = torch.from_numpy(store.labels(split)).to(device)

    def __getitem__(self, rows: Rows) -> Batch:
        """Return uint8 [B, C, H, W], strided as channels_last, and int64 [B], on the device."""
        rows_B = torch.from_numpy(rows).to(self._labels_N.device)
        return self._images_NHWC[rows_B].permute(0, 3, 1, 2), self._labels_N[rows_B]


class BatchLoader(DataLoader[Batch]):
    """Loads what a sampler of batches asks for.

    Args:
        dataset: Gives a batch for an array of rows.
        batches: Yields such arrays.
        settings: Worker processes and how far they read ahead.
    """

    def __init__(
        self, dataset: Dataset[Batch], batches: Sampler[Rows], settings: LoaderSettings
    ) -> None:
        workers = 0 if settings.on_device else settings.num_workers
        super().__init__(
            dataset,
            batch_size=None,  # an item is a batch already
            sampler=batches,
            num_workers=workers,
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not settings.on_device,
            collate_fn=_as_it_is,
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # declared as a private class
        if self.num_workers or self.pin_memory:
            return super().__iter__()
        # Without workers, torch's own iterator takes a third of the time of 64 small images.
        if isinstance(self.dataset, BatchDataset):
            return self.dataset.read(self.sampler)
        return (self.dataset[rows] for rows in self.sampler)


class ResumableLoader(BatchLoader):
    """A training loader that goes on in the middle of an epoch.

    Its place is not its own state: batches handed out and read ahead may be more than were trained
    on, and Lightning hands a loader its state too late if the number of steps was asked for before.

    Args:
        dataset: Gives a batch for an array of rows.
        batches: Yields such arrays.
        settings: Worker processes and how far they read ahead.
        trained: Returns how many batches of this epoch were trained on; asked when the first batch
            is.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        batches: EpochBatches,
        settings: LoaderSettings,
        trained: Callable[[], int],
    ) -> None:
        super().__init__(dataset, batches, settings)
        self._trained = trained

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: nothing starts before the first batch is asked for, which is after Lightning
        # has set the epoch and restored its progress.
        assert isinstance(self.sampler, EpochBatches)
        self.sampler.first = self._trained()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return nothing; a loader without this method is one that Lightning warns of."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing, see `state_dict`."""


def _as_it_is(batch: Any) -> Any:
    return batch

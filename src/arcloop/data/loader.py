"""Whole batches from a store to torch, without a line of Python per image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from arcloop.config import LoaderSettings
from arcloop.data.sampler import ShuffledBatches
from arcloop.data.store import Store

Batch = tuple[Tensor, Tensor]
Rows = npt.NDArray[np.int64]


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


class BatchLoader(DataLoader[Batch]):
    """Loads what a sampler of batches asks for.

    Args:
        dataset: Gives a batch for an array of rows.
        batches: Yields such arrays.
        settings: Worker processes and how far they read ahead.
    """

    def __init__(
        self, dataset: BatchDataset, batches: Sampler[Rows], settings: LoaderSettings
    ) -> None:
        workers = settings.num_workers
        super().__init__(
            dataset,
            batch_size=None,  # an item is a batch already
            sampler=batches,
            num_workers=workers,
            prefetch_factor=settings.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,
        )


class ResumableLoader(BatchLoader):
    """A training loader that goes on in the middle of an epoch, where a checkpoint was taken.

    Lightning keeps `state_dict` in its checkpoints and hands it back; which epoch it is, it tells
    the sampler.
    """

    _next_batch = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # declared as a private class
        # A generator: nothing starts before the first batch is asked for, which is after Lightning
        # has set the epoch. What workers read ahead does not count, what is handed out does.
        assert isinstance(self.sampler, ShuffledBatches)
        self._next_batch = self.sampler.first_batch()
        for batch in super().__iter__():
            self._next_batch += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the batch of it that comes next."""
        assert isinstance(self.sampler, ShuffledBatches)
        return {"epoch": self.sampler.epoch, "next_batch": self._next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with that batch, if that is the epoch to go on with."""
        assert isinstance(self.sampler, ShuffledBatches)
        self.sampler.start = (state["epoch"], state["next_batch"])


def _as_it_is(batch: Any) -> Any:
    return batch

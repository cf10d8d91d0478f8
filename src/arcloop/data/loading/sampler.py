"""Which rows make which batch: a pure function of seed, epoch, and this process's place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from arcloop.distributed.process_group import current_process_group
from arcloop.errors import DataError

Rows = npt.NDArray[np.int64]
Drawn = npt.NDArray[np.integer[Any]]
Labels = npt.NDArray[np.int64]


class EpochBatches(Sampler[Rows], ABC):
    """Batches of training: an epoch is one order of rows, which all processes share.

    Each process takes its part of every global batch, so one process with batches of 256 and two
    with 128 train on the same global batches. Rows within a part ascend: their order means nothing
    to a loss, and files are read forwards.

    Args:
        batches: Batches in an epoch.
        batch_size: Rows in a batch of one process.
        world: Processes.
        seed: Of every draw, together with the epoch.

    Attributes:
        epoch: Epoch whose order `__iter__` follows; set by Lightning through `set_epoch`.
        first: Batch that `__iter__` starts with.
    """

    def __init__(self, *, batches: int, batch_size: int, world: int, seed: int) -> None:
        self._batches, self._batch_size = batches, batch_size
        self._world, self._seed = world, seed
        self.epoch = 0
        self.first = 0

    @abstractmethod
    def order(self, random: np.random.Generator) -> Drawn:
        """Draw an epoch: rows of its global batches one after another, [N] or more integers."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next `__iter__`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Rows]:
        group = current_process_group()
        assert group.world_size == self._world
        order = self.order(np.random.default_rng([self._seed, self.epoch]))
        for batch in range(self.first, self._batches):
            start = (batch * group.world_size + group.rank) * self._batch_size
            yield np.sort(order[start : start + self._batch_size]).astype(np.int64, copy=False)


class ShuffledBatches(EpochBatches):
    """Every row at most once an epoch, in random order; the incomplete last batch is left out.

    Args:
        labels_N: Class of every row of the split.
        batch_size: Rows in a batch of one process; a split smaller than a batch is one batch.
        world: Processes.
        seed: Of the shuffling.

    Raises:
        DataError: There are fewer than two rows for each process.
    """

    def __init__(self, *, labels_N: Labels, batch_size: int, world: int, seed: int) -> None:
        self._rows = len(labels_N)
        size = rows_of_a_batch(self._rows, batch_size, world)
        super().__init__(
            batches=self._rows // (size * world), batch_size=size, world=world, seed=seed
        )

    def order(self, random: np.random.Generator) -> Drawn:
        # `random.permutation`, in half the memory: what it draws does not depend on the type.
        order: Drawn = np.arange(self._rows, dtype=np.uint32 if self._rows <= 2**32 else np.int64)
        random.shuffle(order)
        return order


def rows_of_a_batch(rows: int, batch_size: int, world: int) -> int:
    """Return the rows of a process in a batch: `batch_size`, or its part of a smaller split.

    Raises:
        DataError: There are fewer than two rows for each process: too few for a batch norm.
    """
    if rows < 2 * world:
        raise DataError(
            f"train has {rows} images: too few for {world} process(es)",
            remedy="give it more images, or train in one process",
        )
    return min(batch_size, rows // world)


class OrderedBatches(Sampler[Rows]):
    """Batches in the order of the store; each process has its own contiguous part of the rows.

    No row is missing and none is there twice, so a metric over all processes is that of one.

    Args:
        rows: Rows of the split.
        batch_size: Rows in a batch; the last may be smaller.
    """

    def __init__(self, *, rows: int, batch_size: int) -> None:
        self._rows, self._batch_size = rows, batch_size

    def _part(self) -> range:
        group = current_process_group()
        # Whole batches, those that one process has: what a network gives for an image may depend in
        # the last bit on how many others are with it. A process without a batch would be left out
        # of what the others do together, so a few rows are shared out by row.
        unit = self._batch_size if self._rows >= group.world_size * self._batch_size else 1
        return group.shard(self._rows, unit)

    def __len__(self) -> int:
        return -(-len(self._part()) // self._batch_size)

    def __iter__(self) -> Iterator[Rows]:
        part = self._part()
        for start in range(part.start, part.stop, self._batch_size):
            yield np.arange(start, min(start + self._batch_size, part.stop))

"""Batch samplers: the rows of each batch are a pure function of seed, epoch, rank and world size.

Shapes: N rows of the split, B rows of a batch in one process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from arcloop.distributed.process_group import current_process_group
from arcloop.errors import DataError

Rows = npt.NDArray[np.int64]


@runtime_checkable
class Labels(Protocol):
    """Integer labels [N]: an array, or an object that `numpy.asarray` converts to one."""

    def __len__(self) -> int: ...

    def __array__(self) -> npt.NDArray[Any]: ...


class EpochBatches(Sampler[Rows], ABC):
    """Base class of train batches: all processes draw the same order of rows and divide it.

    Each process takes its part of every global batch. One process with batches of 256 rows and two
    processes with batches of 128 rows train on the same global batches. The rows of a part are
    sorted, because sequential reads are fastest and the loss does not depend on the order.

    Args:
        batches: Batches per epoch.
        batch_size: Rows per batch and process.
        world_size: Number of processes.
        seed: Seed of all draws, together with the epoch.

    Attributes:
        epoch: Epoch of the next iteration; Lightning sets it through `set_epoch`.
        first_batch: Index of the first batch of the next iteration.
    """

    def __init__(self, *, batches: int, batch_size: int, world_size: int, seed: int) -> None:
        self._batches, self._batch_size = batches, batch_size
        self._world_size, self._seed = world_size, seed
        self.epoch = 0
        self.first_batch = 0

    @abstractmethod
    def order(self, random: np.random.Generator) -> npt.NDArray[np.integer[Any]]:
        """Draw the concatenated rows of all global batches of an epoch; excess rows are unused."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Rows]:
        group = current_process_group()
        assert group.world_size == self._world_size
        order = self.order(np.random.default_rng([self._seed, self.epoch]))
        for batch in range(self.first_batch, self._batches):
            start = (batch * group.world_size + group.rank) * self._batch_size
            yield np.sort(order[start : start + self._batch_size]).astype(np.int64, copy=False)


class ShuffledBatches(EpochBatches):
    """Draws each row at most once per epoch, in random order; drops an incomplete last batch.

    Args:
        labels_N: Label of each row of the split.
        batch_size: Rows per batch and process. A split that is smaller than a batch is one batch.
        world_size: Number of processes.
        seed: Seed of the shuffling.

    Raises:
        DataError: There are fewer than two rows for each process, too few for batch norm.
    """

    def __init__(self, *, labels_N: Labels, batch_size: int, world_size: int, seed: int) -> None:
        self._rows = len(labels_N)
        if self._rows < 2 * world_size:
            raise DataError(
                f"train has {self._rows} image(s): too few for {world_size} process(es), which need"
                " 2 each",
                remedy="add images to train, or train in one process",
            )
        size = min(batch_size, self._rows // world_size)
        super().__init__(
            batches=self._rows // (size * world_size),
            batch_size=size,
            world_size=world_size,
            seed=seed,
        )

    def order(self, random: np.random.Generator) -> npt.NDArray[np.integer[Any]]:
        # The same order as `random.permutation`, which always needs 8 bytes per row.
        dtype = np.uint32 if self._rows <= 2**32 else np.int64
        order_N: npt.NDArray[np.integer[Any]] = np.arange(self._rows, dtype=dtype)
        random.shuffle(order_N)
        return order_N


class OrderedBatches(Sampler[Rows]):
    """Draws rows in the order of the store; each process has a contiguous part of them.

    Each row is in exactly one part, so metrics over all processes equal those of one process.

    Args:
        rows: Number of rows of the split.
        batch_size: Rows per batch; the last batch may be smaller.
    """

    def __init__(self, *, rows: int, batch_size: int) -> None:
        self._rows, self._batch_size = rows, batch_size

    def _part(self) -> range:
        group = current_process_group()
        # The batches are the same as in a run with one process, because the last bits of the output
        # for an image may depend on the other images of the batch. If there are fewer batches than
        # processes, rows are divided instead, so that every process joins the collectives.
        unit = self._batch_size if self._rows >= group.world_size * self._batch_size else 1
        return group.shard(self._rows, unit)

    def __len__(self) -> int:
        return -(-len(self._part()) // self._batch_size)

    def __iter__(self) -> Iterator[Rows]:
        part = self._part()
        for start in range(part.start, part.stop, self._batch_size):
            yield np.arange(start, min(start + self._batch_size, part.stop))

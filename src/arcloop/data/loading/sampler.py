"""Batch samplers: the rows of each batch are a pure function of seed, epoch, rank and world size.

Shapes: N rows of the split, B rows of a batch in one process, C classes, T draws of a class, U
rounds of all classes, E rows of these rounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from arcloop.config.value_types import PositiveInt, checked
from arcloop.distributed.process_group import current_process_group
from arcloop.errors import ConfigError, DataError

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


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


class ClassBalancedBatches(ShuffledBatches):
    """Draws all classes equally often: their image counts in an epoch differ by at most one.

    The classes are drawn in rounds; each round is a random permutation of all classes. The images
    of a class are drawn in rounds, too. An epoch has as many batches as with `ShuffledBatches`, so
    images of small classes are repeated and some images of large classes are not drawn.

    Args:
        labels_N: Label of each row of the split.
        batch_size: Rows per batch and process. A split that is smaller than a batch is one batch.
        world_size: Number of processes.
        seed: Seed of all draws.

    Raises:
        DataError: There are fewer than two rows for each process.
    """

    def __init__(self, *, labels_N: Labels, batch_size: int, world_size: int, seed: int) -> None:
        super().__init__(labels_N=labels_N, batch_size=batch_size, world_size=world_size, seed=seed)
        self._class_rows = ClassRows(labels_N)

    def order(self, random: np.random.Generator) -> Rows:
        rows = len(self) * self._batch_size * self._world_size
        classes_T = draw_classes(self._class_rows.num_classes, rows, 1, random)
        return self._class_rows.draw(classes_T, 1, random)


class PKBatches(EpochBatches):
    """Draws K images of each of P different classes per global batch, for losses on pairs.

    P is the size of the global batch (loader.batch_size times the number of processes) divided by
    K. Classes are drawn in rounds as in `ClassBalancedBatches`, so their numbers of draws in an
    epoch differ by at most one. The images of a class are drawn in rounds, too; if a class has
    fewer than K images, some of them are repeated within a batch. If P is a multiple of the
    number of processes, the images of a class are in one process. An epoch has as many batches as
    with `ShuffledBatches`.

    Hermans et al., "In Defense of the Triplet Loss" (arXiv 1703.07737), section 2.

    Args:
        labels_N: Label of each row of the split.
        batch_size: Rows per batch and process.
        world_size: Number of processes.
        seed: Seed of all draws.
        images_per_class: K.

    Raises:
        ConfigError: K does not divide the size of the global batch, or train has fewer than P
            classes.
    """

    @checked("sampler")
    def __init__(
        self,
        *,
        labels_N: Labels,
        batch_size: int,
        world_size: int,
        seed: int,
        images_per_class: PositiveInt,
    ) -> None:
        self._class_rows = ClassRows(labels_N)
        self._images_per_class = images_per_class
        rows = batch_size * world_size
        _require_classes(rows, world_size, images_per_class, self._class_rows.num_classes)
        self._classes_per_batch = rows // images_per_class
        super().__init__(
            batches=max(1, len(labels_N) // rows),
            batch_size=batch_size,
            world_size=world_size,
            seed=seed,
        )

    def order(self, random: np.random.Generator) -> Rows:
        classes_T = draw_classes(
            self._class_rows.num_classes,
            len(self) * self._classes_per_batch,
            self._classes_per_batch,
            random,
        )
        return self._class_rows.draw(classes_T, self._images_per_class, random)


def _require_classes(rows: int, world_size: int, images_per_class: int, num_classes: int) -> None:
    where = "sampler.images_per_class, loader.batch_size"
    processes = f" ({world_size} processes)" if world_size > 1 else ""
    batch = f"a global batch of {rows} images{processes}"
    divisors = [divisor for divisor in range(1, rows + 1) if rows % divisor == 0]
    if images_per_class not in divisors:
        raise ConfigError(
            f"{batch} cannot be divided into groups of {images_per_class} images per class",
            where=where,
            remedy=f"set images_per_class to one of {', '.join(map(str, divisors))},"
            " or change batch_size",
        )
    if rows // images_per_class > num_classes:
        larger = next(divisor for divisor in divisors if rows // divisor <= num_classes)
        sizes = range(num_classes * images_per_class // world_size, 0, -1)
        smaller = next((s for s in sizes if s * world_size % images_per_class == 0), None)
        raise ConfigError(
            f"{batch} with {images_per_class} images per class needs {rows // images_per_class}"
            f" classes, but train has {num_classes}",
            where=where,
            remedy=f"pass sampler.images_per_class={larger}"
            + (f" or loader.batch_size={smaller}" if smaller else ""),
        )


def draw_classes(
    num_classes: int, draws: int, group: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw classes in rounds, each a random permutation of all classes.

    Args:
        num_classes: Number of classes in a round.
        draws: T, number of draws.
        group: Number of consecutive draws that do not repeat a class, at most `num_classes`.
        random: Source of the random numbers.

    Returns:
        Class indices [T].
    """
    rounds = -(-draws // num_classes)
    classes_T = random.permuted(np.tile(np.arange(num_classes), (rounds, 1)), axis=1).ravel()
    for start in range(num_classes, len(classes_T), num_classes) if group > 1 else ():
        drawn = start % group  # draws in the earlier round, of the group that spans both rounds
        round_C = classes_T[start : start + num_classes]
        is_drawn_C = np.isin(round_C, classes_T[start - drawn : start])
        round_C[:] = round_C[np.argsort(is_drawn_C, kind="stable")]
        random.shuffle(round_C[group - drawn :])
    return classes_T[:draws]


class ClassRows:
    """The rows of each class.

    Args:
        labels_N: Label of each row. The labels need not be consecutive.
    """

    def __init__(self, labels_N: Labels) -> None:
        _, self._size_C = np.unique(labels_N, return_counts=True)
        self._first_C = self._size_C.cumsum() - self._size_C
        self._rows_N = np.argsort(labels_N, kind="stable")
        self.num_classes = len(self._size_C)

    def draw(self, classes_T: Rows, each: int, random: np.random.Generator) -> Rows:
        """Draw `each` rows of a class for every draw of that class.

        Rows are drawn in rounds: each round is a random order of all rows of the class. If the rows
        that remain in a round are fewer than `each`, they are skipped and a new round starts. If a
        class has fewer than `each` rows, a draw repeats some of them.

        Returns:
            Rows, int64 [T * each], in the order of the draws.
        """
        # The draws of each class are numbered, and divided into rounds.
        draws_C = np.bincount(classes_T, minlength=self.num_classes)
        number_T = np.arange(len(classes_T)) - np.repeat(draws_C.cumsum() - draws_C, draws_C)
        number_T[np.argsort(classes_T, kind="stable")] = number_T.copy()
        per_round_C = np.maximum(1, self._size_C // each)
        rounds_C = -(-draws_C // per_round_C)
        round_T, place_T = np.divmod(number_T, per_round_C[classes_T])
        # Each round has all rows of its class in a random order.
        class_U = np.repeat(np.arange(self.num_classes), rounds_C)
        size_U = self._size_C[class_U]
        first_U = size_U.cumsum() - size_U
        rows_E = np.arange(size_U.sum()) + np.repeat(self._first_C[class_U] - first_U, size_U)
        keys_E = np.repeat(np.arange(len(size_U)), size_U) + random.random(len(rows_E))
        rows_E = self._rows_N[rows_E][np.argsort(keys_E, kind="stable")]
        first_T = first_U[(rounds_C.cumsum() - rounds_C)[classes_T] + round_T]
        column_TK = (place_T[:, None] * each + np.arange(each)) % self._size_C[classes_T][:, None]
        return np.asarray(rows_E[first_T[:, None] + column_TK].ravel())


class OrderedBatches(Sampler[Rows]):
    """Draws rows in the order of the store; each process has a contiguous part of them.

    Each row is in exactly one part, so metrics over all processes equal those of one process.

    Args:
        rows: Number of rows of the split.
        batch_size: Rows per batch; the last batch may be smaller.
    """

    def __init__(self, *, rows: int, batch_size: int) -> None:
        self._rows, self._batch_size = rows, batch_size

    def __len__(self) -> int:
        return -(-len(current_process_group().shard(self._rows)) // self._batch_size)

    def __iter__(self) -> Iterator[Rows]:
        part = current_process_group().shard(self._rows)
        for start in range(part.start, part.stop, self._batch_size):
            yield np.arange(start, min(start + self._batch_size, part.stop))

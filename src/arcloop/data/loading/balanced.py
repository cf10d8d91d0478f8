"""Batch samplers that draw classes first, and then images of these classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import PositiveInt, checked
from arcloop.data.loading.sampler import EpochBatches, Labels, Rows, ShuffledBatches
from arcloop.errors import ConfigError

Ints = npt.NDArray[np.int64]


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
        classes_T = draw_rounds(self._class_rows.num_classes, rows, random)
        return self._class_rows.draw(classes_T[:rows], 1, random)


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
        num_classes, draws = self._class_rows.num_classes, len(self) * self._classes_per_batch
        classes_T = draw_rounds(num_classes, draws, random)
        make_groups_distinct(classes_T, num_classes, self._classes_per_batch)
        return self._class_rows.draw(classes_T[:draws], self._images_per_class, random)


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


def draw_rounds(num_classes: int, draws: int, random: np.random.Generator) -> Ints:
    """Draw complete rounds, each a random permutation of all classes, for at least `draws` draws.

    Returns:
        Class indices [T], with T a multiple of `num_classes`.
    """
    rounds = -(-draws // num_classes)
    return random.permuted(np.tile(np.arange(num_classes), (rounds, 1)), axis=1).ravel()


def make_groups_distinct(classes_T: Ints, num_classes: int, size: int) -> None:
    """Reorder each round, in place, so that no group of `size` consecutive draws repeats a class.

    A group that spans two rounds takes the first classes of the second round that it does not
    already contain.

    Args:
        classes_T: Result of `draw_rounds`.
        num_classes: Number of classes in a round.
        size: Draws per group, at most `num_classes`.
    """
    for start in range(num_classes, len(classes_T), num_classes):
        drawn = start % size  # number of the group's draws that are in the previous round
        if drawn == 0:
            continue
        round_C = classes_T[start : start + num_classes]
        is_free = np.ones(num_classes, bool)
        is_free[classes_T[start - drawn : start]] = False
        is_first = np.zeros(num_classes, bool)
        is_first[np.flatnonzero(is_free[round_C])[: size - drawn]] = True
        round_C[:] = np.concatenate([round_C[is_first], round_C[~is_first]])


class ClassRows:
    """The rows of each class.

    Args:
        labels_N: Label of each row. The labels need not be consecutive.
    """

    def __init__(self, labels_N: Labels) -> None:
        array_N = np.asarray(labels_N)
        _, self._counts = np.unique(array_N, return_counts=True)
        self._rows = np.argsort(array_N, kind="stable")
        self._starts = self._counts.cumsum() - self._counts
        self.num_classes = len(self._counts)

    def draw(self, classes_T: Ints, each: int, random: np.random.Generator) -> Rows:
        """Draw `each` rows of a class for every draw of that class.

        Rows are drawn in rounds: each round is a random order of all rows of the class. If the rows
        that remain in a round are fewer than `each`, they are skipped and a new round starts. If a
        class has fewer than `each` rows, a draw repeats some of them.

        Shapes: T draws, K `each`, C classes, R rounds of all classes, N rows of all rounds.

        Returns:
            Rows, int64 [T * K], in the order of the draws.
        """
        draws_C = np.bincount(classes_T, minlength=self.num_classes)
        per_round_C = np.maximum(1, self._counts // each)
        rounds_C = -(-draws_C // per_round_C)
        # Concatenate the rounds of all classes and shuffle the rows within each round.
        class_R = np.repeat(np.arange(self.num_classes), rounds_C)
        rows_R = self._counts[class_R]
        starts_R = rows_R.cumsum() - rows_R
        round_N = np.repeat(np.arange(len(class_R)), rows_R)
        place_N = np.arange(len(round_N)) + (self._starts[class_R] - starts_R)[round_N]
        shuffled_N = self._rows[place_N[np.argsort(round_N + random.random(len(round_N)))]]

        by_class = np.argsort(classes_T, kind="stable")
        class_T = classes_T[by_class]
        number_T = (
            np.arange(len(class_T)) - (draws_C.cumsum() - draws_C)[class_T]
        )  # draw of the class
        round_T, within_T = np.divmod(number_T, per_round_C[class_T])
        round_T += (rounds_C.cumsum() - rounds_C)[class_T]
        columns_TK = within_T[:, None] * each + np.arange(each)
        columns_TK %= self._counts[class_T][:, None]
        drawn_TK = np.empty((len(classes_T), each), np.int64)
        drawn_TK[by_class] = shuffled_N[starts_R[round_T][:, None] + columns_TK]
        return drawn_TK.ravel()

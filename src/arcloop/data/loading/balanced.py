"""Batches in which classes, not images, have their turns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import PositiveInt, checked
from arcloop.data.loading.sampler import EpochBatches, Labels, Rows, rows_of_a_batch
from arcloop.errors import ConfigError

Ints = npt.NDArray[np.int64]


class ClassBalancedBatches(EpochBatches):
    """Every class as often as any other: over an epoch, all within one image.

    Classes take turns in rounds of random order, and so do the images of a class. An epoch has as
    many batches as one of `ShuffledBatches`: images of small classes come again, and of large ones
    some do not come.

    Args:
        labels_N: Class of every row of the split.
        batch_size: Rows in a batch of one process; a split smaller than a batch is one batch.
        world: Processes.
        seed: Of every draw.

    Raises:
        DataError: There are fewer than two rows for each process.
    """

    def __init__(self, *, labels_N: Labels, batch_size: int, world: int, seed: int) -> None:
        self._turns = _Turns(labels_N)
        size = rows_of_a_batch(len(labels_N), batch_size, world)
        super().__init__(
            batches=len(labels_N) // (size * world), batch_size=size, world=world, seed=seed
        )

    def order(self, random: np.random.Generator) -> Rows:
        turns = len(self) * self._batch_size * self._world
        classes = rounds(self._turns.num_classes, turns, random)
        return self._turns.draw(classes[:turns], 1, random)


class PKBatches(EpochBatches):
    """K images of each of P different classes in every global batch, as losses over pairs want it.

    P is derived: the global batch, loader.batch_size x processes, over K. Classes take turns in
    rounds of random order, so that over an epoch all come equally often, within one; the images of
    a class take turns too. A class with fewer than K images repeats some in a batch. Where P is a
    multiple of the number of processes, each process has whole classes. An epoch has as many
    batches as one of `ShuffledBatches`.

    Hermans et al., "In Defense of the Triplet Loss" (arXiv 1703.07737), section 2.

    Args:
        labels_N: Class of every row of the split.
        batch_size: Rows in a batch of one process.
        world: Processes.
        seed: Of every draw.
        images_per_class: K.

    Raises:
        ConfigError: K does not divide the global batch, or there are not P classes.
    """

    @checked("sampler")
    def __init__(
        self,
        *,
        labels_N: Labels,
        batch_size: int,
        world: int,
        seed: int,
        images_per_class: PositiveInt,
    ) -> None:
        self._turns = _Turns(labels_N)
        self._of_class = images_per_class
        rows = batch_size * world
        _require_possible(rows, world, images_per_class, self._turns.num_classes)
        self._classes = rows // images_per_class
        super().__init__(
            batches=max(1, len(labels_N) // rows), batch_size=batch_size, world=world, seed=seed
        )

    def order(self, random: np.random.Generator) -> Rows:
        classes = rounds(self._turns.num_classes, len(self) * self._classes, random)
        keep_apart(classes, self._turns.num_classes, self._classes)
        return self._turns.draw(classes[: len(self) * self._classes], self._of_class, random)


def _require_possible(rows: int, world: int, of_class: int, num_classes: int) -> None:
    where = "sampler.images_per_class, loader.batch_size"
    batch = f"a global batch of {rows} images" + (f" ({world} processes)" if world > 1 else "")
    if rows % of_class:
        raise ConfigError(
            f"{batch} cannot hold {of_class} of each class",
            where=where,
            remedy=f"choose images_per_class among {', '.join(map(str, _divisors(rows)))},"
            " or another batch_size",
        )
    if rows // of_class > num_classes:
        larger = next(k for k in _divisors(rows) if rows // k <= num_classes)
        most = num_classes * of_class // world
        smaller = next((b for b in range(most, 0, -1) if b * world % of_class == 0), None)
        raise ConfigError(
            f"{batch} with {of_class} of each class takes {rows // of_class} classes, but train has"
            f" {num_classes}",
            where=where,
            remedy=f"pass sampler.images_per_class={larger}"
            + (f" or loader.batch_size={smaller}" if smaller else ""),
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def rounds(num_classes: int, turns: int, random: np.random.Generator) -> Ints:
    """Draw whole rounds, each of all classes in random order, until there are enough turns.

    Returns:
        Positions of classes, int64 [at least `turns`, a multiple of `num_classes`].
    """
    number = -(-turns // num_classes)
    return random.permuted(np.tile(np.arange(num_classes), (number, 1)), axis=1).ravel()


def keep_apart(classes: Ints, num_classes: int, size: int) -> None:
    """Reorder rounds, in place, so that no group of `size` turns has a class twice.

    A group that reaches into the next round takes from it the first classes that it has not got.

    Args:
        classes: As from `rounds`.
        num_classes: Classes in a round.
        size: Turns in a group, at most `num_classes`.
    """
    for start in range(num_classes, len(classes), num_classes):
        held = start % size
        if not held:
            continue
        turn = classes[start : start + num_classes]
        free = np.ones(num_classes, bool)
        free[classes[start - held : start]] = False
        first = np.zeros(num_classes, bool)
        first[np.flatnonzero(free[turn])[: size - held]] = True
        turn[:] = np.concatenate([turn[first], turn[~first]])


class _Turns:
    """The rows of each class, drawn in turns.

    Args:
        labels_N: Class of every row.
    """

    def __init__(self, labels_N: Labels) -> None:
        labels_N = np.asarray(labels_N)  # read once, see `SplitLabels`
        _, self._counts = np.unique(labels_N, return_counts=True)
        self._rows = np.argsort(labels_N, kind="stable")
        self._starts = self._counts.cumsum() - self._counts
        self.num_classes = len(self._counts)

    def draw(self, classes_T: Ints, each: int, random: np.random.Generator) -> Rows:
        """Draw `each` rows of a class for every turn it has.

        A row comes again only when all others of its class came, but for those too few for a turn.

        Shapes: T turns, K `each`, C classes, R rounds of a class, N rows of all rounds.

        Returns:
            Rows, int64 [T * each], turn by turn.
        """
        turns_C = np.bincount(classes_T, minlength=self.num_classes)
        per_round_C = np.maximum(1, self._counts // each)
        rounds_C = -(-turns_C // per_round_C)
        # All rounds of all classes one after another: the rows of its class, shuffled.
        class_R = np.repeat(np.arange(self.num_classes), rounds_C)
        rows_R = self._counts[class_R]
        starts_R = rows_R.cumsum() - rows_R
        round_N = np.repeat(np.arange(len(class_R)), rows_R)
        place_N = np.arange(len(round_N)) + (self._starts[class_R] - starts_R)[round_N]
        shuffled_N = self._rows[place_N[np.argsort(round_N + random.random(len(round_N)))]]

        by_class = np.argsort(classes_T, kind="stable")
        class_T = classes_T[by_class]
        turn_T = np.arange(len(class_T)) - (turns_C.cumsum() - turns_C)[class_T]  # of its class
        number_T, within_T = np.divmod(turn_T, per_round_C[class_T])
        number_T += (rounds_C.cumsum() - rounds_C)[class_T]
        columns_TK = within_T[:, None] * each + np.arange(each)
        columns_TK %= self._counts[class_T][:, None]
        drawn_TK = np.empty((len(classes_T), each), np.int64)
        drawn_TK[by_class] = shuffled_N[starts_R[number_T][:, None] + columns_TK]
        return drawn_TK.ravel()

"""How many rows of each class each split gets. C: classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from arcloop.data.splits import SPLITS
from arcloop.data.splits.drawing import fill_splits

Ints = npt.NDArray[np.int64]

MIN_ROWS = {"train": 1, "val": 2, "gallery": 1, "query": 1}
"""Minimum rows of each class per split. An image in `val` needs a neighbour of its class."""


def apportion(counts: Ints, totals: Mapping[str, int], seed: int) -> dict[str, Ints]:
    """Divide the rows of each class over splits by the largest remainder method.

    Of classes with equal numbers of rows, those that earlier splits rounded down come first, so
    that they keep similar numbers of rows for train; then the seed decides.

    Args:
        counts: [C] rows of each class.
        totals: Split -> number of its rows. At least one row of each class must remain.
        seed: Seed of the order of classes with equal numbers of rows.

    Returns:
        Split -> [C] rows of each class, which add up to the size of the split.

    Example:
        >>> apportion(np.array([10, 20, 5]), {"gallery": 7}, seed=0)
        {'gallery': array([2, 4, 1])}
    """
    minimum = _minimum_rows(counts, totals)
    left = counts - 1 - sum(minimum.values())  # one row of each class is reserved for train
    num_spare = int(counts.sum()) - len(counts) - sum(totals.values())
    drawn = np.random.default_rng([seed, 1]).permutation(len(counts))
    left[drawn[left[drawn] > 0][:num_spare]] -= 1  # reserve a second row while there are enough
    _, first_rows, size_C = np.unique(counts, return_index=True, return_inverse=True)
    first_of_size = first_rows[size_C]  # equal for classes that the seed may exchange
    rows_of, rounded = {}, np.zeros(len(counts))
    for name, total in totals.items():
        low, high = minimum[name], minimum[name] + left
        quota = total * counts / counts.sum()
        rows = np.clip(np.floor(quota).astype(np.int64), low, high)
        while missing := total - int(rows.sum()):
            step = 1 if missing > 0 else -1
            possible = rows < high if step > 0 else rows > low
            order = np.lexsort((drawn, step * rounded, first_of_size, step * (rows - quota)))
            rows[order[possible[order]][: abs(missing)]] += step
        left = high - rows
        rounded += rows - quota
        rows_of[name] = rows
    return rows_of


def apportion_new(new_C: Ints, stored_CS: Ints, sizes: Mapping[str, int | float]) -> Ints:
    """Assign each new image of a class to the split that is farthest below its share of it.

    Args:
        new_C: [C] number of new images of each class.
        stored_CS: [C, 4] stored images of each class in each of `SPLITS`.
        sizes: Split -> number of rows (int) or fraction of all rows (float); the rest is `train`.

    Returns:
        [C, 4] new images of each class for each split.

    Example:
        >>> stored_CS = np.array([[6, 2, 1, 1]])
        >>> apportion_new(np.array([10]), stored_CS, {"val": 0.2, "gallery": 0.2, "query": 0.2})
        array([[2, 2, 3, 3]])
    """
    return fill_splits(new_C, stored_CS, *wanted_rows(new_C, stored_CS, sizes))


def wanted_rows(
    new_C: Ints, stored_CS: Ints, sizes: Mapping[str, int | float]
) -> tuple[npt.NDArray[np.float64], Ints]:
    """Return [C, 4] wanted and minimum numbers of rows after new rows are added to a store."""
    total_C = new_C + stored_CS.sum(axis=1)
    rows = int(total_C.sum())
    wanted = {
        name: max(size * rows, MIN_ROWS[name] * len(new_C)) if isinstance(size, float) else size
        for name, size in sizes.items()
    }
    wanted = {"train": rows - sum(wanted.values()), **wanted}
    fraction_S = np.array([wanted[split] / rows for split in SPLITS])
    # A split with fewer rows than there are classes cannot contain every class.
    minimum_S = np.array([min(MIN_ROWS[split], wanted[split] // len(new_C)) for split in SPLITS])
    return total_C[:, None] * fraction_S, np.tile(minimum_S.astype(np.int64), (len(new_C), 1))


def _minimum_rows(counts: Ints, totals: Mapping[str, int]) -> dict[str, Ints]:
    """Return split -> [C] minimum number of rows of each class in this split."""
    minimum = {name: np.full_like(counts, min(1, t // len(counts))) for name, t in totals.items()}
    spare = counts - 1 - sum(minimum.values())
    for name, total in totals.items():
        wanted = min(MIN_ROWS[name], total // len(counts)) - minimum[name]
        extra = np.clip(wanted, 0, spare)
        minimum[name] += extra
        spare -= extra
    return minimum

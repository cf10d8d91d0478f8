"""Seeded, stratified splits: every class is divided over all splits, with exact split sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.data.splits import SPLITS
from arcloop.errors import DataError, list_some

Ints = npt.NDArray[np.int64]

_MIN_ROWS = {"train": 1, "val": 2, "gallery": 1, "query": 1}
"""Minimum rows of each class per split. An image in `val` needs a neighbour of its class."""


def stratify(
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    sizes: Mapping[str, int | float],
    seed: int,
    where: object,
) -> dict[str, Ints]:
    """Split rows so that every class is divided over all splits in the same proportions.

    The number of rows of each class in each split is computed by the largest remainder method; the
    rows are drawn at random. Every class has at least 1 row in every split and 2 in `val`, if the
    sizes of the class and of the split allow it.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for error messages.
        sizes: Split -> number of rows (int) or fraction of all rows (float); the rest is `train`.
        seed: Seed of the random assignment.
        where: Origin of the rows, for error messages.

    Returns:
        Split -> its rows, ascending; `train` first.

    Raises:
        DataError: Classes have too few images for the splits, or the splits are larger than the
            data set. One message names all such classes.
    """
    counts = np.bincount(labels, minlength=len(classes)).astype(np.int64)
    totals = {
        name: round(size * len(labels)) if isinstance(size, float) else size
        for name, size in sizes.items()
    }
    _require_possible(counts, classes, totals, sizes, where)
    rows_of = apportion(counts, totals)
    names = ("train", *totals)
    table_CS = np.stack([counts - sum(rows_of.values()), *rows_of.values()], axis=1)
    split = _draw_splits(labels, table_CS, seed)
    return {name: np.flatnonzero(split == number) for number, name in enumerate(names)}


def assign_new(
    labels: Ints,
    stored_CS: Ints,
    classes: Sequence[str],
    *,
    sizes: Mapping[str, int | float],
    seed: int,
) -> Ints:
    """Assign images that are added to a store to its splits.

    Stored images keep their split. New images of a class are assigned to the splits that are
    farthest below their share of the class, so that the splits approach `sizes`. A new class is
    added to every split. Which images of a class are assigned to which split is random.

    Args:
        labels: [N] labels of the new images.
        stored_CS: [stored classes, 4] stored images of each class in each of `SPLITS`.
        classes: Names of the stored classes, followed by those of new classes.
        sizes: Split -> number of rows (int) or fraction of all rows (float); the rest is `train`.
        seed: Seed of the random assignment.

    Returns:
        [N] positions in `SPLITS`.
    """
    counts_CS = np.zeros((len(classes), len(SPLITS)), np.int64)
    counts_CS[: len(stored_CS)] = stored_CS
    new_C = np.bincount(labels, minlength=len(classes))
    return _draw_splits(labels, apportion_new(new_C, counts_CS, sizes), seed)


def apportion(counts: Ints, totals: Mapping[str, int]) -> dict[str, Ints]:
    """Divide the rows of each class over splits by the largest remainder method.

    Args:
        counts: [C] rows of each class.
        totals: Split -> number of its rows. At least one row of each class must remain.

    Returns:
        Split -> [C] rows of each class, which add up to the size of the split.

    Example:
        >>> apportion(np.array([10, 20, 5]), {"gallery": 7})
        {'gallery': array([2, 4, 1])}
    """
    minimum = _minimum_rows(counts, totals)
    left = counts - 1 - sum(minimum.values())  # one row of each class is reserved for train
    rows_of = {}
    for name, total in totals.items():
        low, high = minimum[name], minimum[name] + left
        quota = total * counts / counts.sum()
        rows = np.clip(np.floor(quota).astype(np.int64), low, high)
        while missing := total - int(rows.sum()):
            step = 1 if missing > 0 else -1
            possible = rows < high if step > 0 else rows > low
            order = np.argsort(step * (rows - quota), kind="stable")
            rows[order[possible[order]][: abs(missing)]] += step
        left = high - rows
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
    total_C = new_C + stored_CS.sum(axis=1)
    rows = int(total_C.sum())
    wanted = {
        name: size * rows if isinstance(size, float) else size for name, size in sizes.items()
    }
    wanted = {"train": rows - sum(wanted.values()), **wanted}
    fraction_S = np.array([wanted[split] / rows for split in SPLITS])
    # A split with fewer rows than there are classes cannot contain every class.
    minimum_S = np.array([min(_MIN_ROWS[split], wanted[split] // len(new_C)) for split in SPLITS])
    now_CS, left_C = stored_CS.copy(), new_C.copy()
    while len(some := np.flatnonzero(left_C)):
        now = now_CS[some]
        lack = total_C[some, None] * fraction_S - now
        lack += rows * (now < minimum_S) + rows * (now < np.minimum(minimum_S, 1))
        now_CS[some, lack.argmax(axis=1)] += 1
        left_C[some] -= 1
    return now_CS - stored_CS


def _draw_splits(labels: npt.NDArray[np.integer], table_CS: Ints, seed: int) -> Ints:
    """Draw a split for each row.

    Args:
        labels: [N] class of each row.
        table_CS: [C, S] number of rows of each class for each split.
        seed: Seed of the draw.

    Returns:
        [N] columns of the table.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    num_classes, num_splits = table_CS.shape
    split = np.empty(len(labels), np.int64)
    split[by_class] = np.repeat(np.tile(np.arange(num_splits), num_classes), table_CS.ravel())
    return split


def _minimum_rows(counts: Ints, totals: Mapping[str, int]) -> dict[str, Ints]:
    """Return split -> [C] minimum number of rows of each class in this split."""
    minimum = {name: np.full_like(counts, min(1, t // len(counts))) for name, t in totals.items()}
    spare = counts - 1 - sum(minimum.values())
    for name, total in totals.items():
        wanted = min(_MIN_ROWS[name], total // len(counts)) - minimum[name]
        extra = np.clip(wanted, 0, spare)
        minimum[name] += extra
        spare -= extra
    return minimum


def _require_possible(
    counts: Ints,
    classes: Sequence[str],
    totals: Mapping[str, int],
    sizes: Mapping[str, int | float],
    where: object,
) -> None:
    for name, total in totals.items():
        if total == 0:
            raise DataError(
                f"{name}={sizes[name]} of {counts.sum()} images selects no image",
                where=where,
                remedy=f"raise data.{name}",
            )
    few = np.flatnonzero(counts < 1 + len(totals))
    if len(few):
        named = list_some([f"{classes[c]!r} ({counts[c]})" for c in few.tolist()])
        raise DataError(
            f"too few images to split over train, {', '.join(totals)}: class {named}",
            where=where,
            remedy=f"give each class at least {1 + len(totals)} images, or remove it",
        )
    asked, rows = sum(totals.values()), int(counts.sum())
    if rows - asked < len(classes):
        parts = ", ".join(f"{name}={total}" for name, total in totals.items())
        raise DataError(
            f"the splits are larger than the data set: {parts} of {rows} images"
            f" leave too few to train {len(classes)} classes",
            where=where,
            remedy="lower " + " or ".join(f"data.{name}" for name in totals),
        )

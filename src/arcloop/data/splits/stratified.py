"""Seeded, stratified splits: every class is divided over all splits, with exact split sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.data.splits import SPLITS
from arcloop.errors import ConfigError, DataError, list_some

Ints = npt.NDArray[np.int64]

MIN_ROWS = {"train": 1, "val": 2, "gallery": 1, "query": 1}
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
    rows are drawn at random. Every class has the rows in every split that validation requires:
    `MIN_ROWS`, and 2 in train if the class has enough images. Fractions that give a split fewer
    rows than that are raised, at the expense of the other fractions.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for error messages.
        sizes: Split -> number of rows (int) or fraction of all rows (float); the rest is `train`.
            A number is exact.
        seed: Seed of the random assignment.
        where: Origin of the rows, for error messages.

    Returns:
        Split -> its rows, ascending; `train` first.

    Raises:
        ConfigError: A number of rows is too small for the classes.
        DataError: Classes have too few images for the splits, or the splits are larger than the
            data set. One message names all such classes.
    """
    counts = np.bincount(labels, minlength=len(classes)).astype(np.int64)
    totals = _split_sizes(counts, classes, sizes, where)
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
    num_spare = int(counts.sum()) - len(counts) - sum(totals.values())
    left[np.flatnonzero(left)[:num_spare]] -= 1  # reserve a second row while there are enough
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
        name: max(size * rows, MIN_ROWS[name] * len(new_C)) if isinstance(size, float) else size
        for name, size in sizes.items()
    }
    wanted = {"train": rows - sum(wanted.values()), **wanted}
    fraction_S = np.array([wanted[split] / rows for split in SPLITS])
    # A split with fewer rows than there are classes cannot contain every class.
    minimum_S = np.array([min(MIN_ROWS[split], wanted[split] // len(new_C)) for split in SPLITS])
    now_CS, left_C = stored_CS.copy(), new_C.copy()
    while len(some := np.flatnonzero(left_C)):
        now = now_CS[some]
        lack = total_C[some, None] * fraction_S - now
        # Splits without any row of a class come first, then those with fewer than the minimum.
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
        wanted = min(MIN_ROWS[name], total // len(counts)) - minimum[name]
        extra = np.clip(wanted, 0, spare)
        minimum[name] += extra
        spare -= extra
    return minimum


def _split_sizes(
    counts: Ints, classes: Sequence[str], sizes: Mapping[str, int | float], where: object
) -> dict[str, int]:
    """Return the number of rows of each split, after checking that they are possible."""
    rows = int(counts.sum())
    totals = {
        name: round(size * rows) if isinstance(size, float) else size
        for name, size in sizes.items()
    }
    minimum = {name: MIN_ROWS[name] * len(classes) for name in totals}
    for name, total in totals.items():
        if total == 0:
            raise DataError(
                f"{name}={sizes[name]} of {rows} images selects no image",
                where=where,
                remedy=f"raise data.{name}",
            )
        if total < minimum[name] and isinstance(sizes[name], int) and name != "query":
            raise ConfigError(
                f"data.{name}={total} is too small: each of the {len(classes)} classes needs"
                f" {MIN_ROWS[name]} image(s) in {name}",
                where=where,
                remedy=f"pass data.{name}={minimum[name]} or more, or a fraction of the images",
            )
    needed = 1 + sum(MIN_ROWS[name] for name in totals)
    if len(few := np.flatnonzero(counts < needed)):
        named = list_some([f"{classes[c]!r} ({counts[c]})" for c in few.tolist()])
        raise DataError(
            f"too few images to split over train, {', '.join(totals)}: class {named}",
            where=where,
            remedy=f"give each class at least {needed} images, remove it, or pass"
            " data.split=disjoint, which needs 2 images of a class",
        )
    _require_rows_for_train(rows, totals, classes, where)
    fractions = [name for name, size in sizes.items() if isinstance(size, float)]
    totals |= {name: max(totals[name], minimum[name]) for name in fractions}
    excess = sum(totals.values()) + int(np.minimum(counts - needed + 1, 2).sum()) - rows
    for name in sorted(fractions, key=lambda name: minimum[name] - totals[name]):
        cut = max(0, min(excess, totals[name] - minimum[name]))
        totals[name] -= cut
        excess -= cut
    _require_rows_for_train(rows, totals, classes, where)
    return totals


def _require_rows_for_train(
    rows: int, totals: Mapping[str, int], classes: Sequence[str], where: object
) -> None:
    if rows - sum(totals.values()) < len(classes):
        parts = ", ".join(f"{name}={total}" for name, total in totals.items())
        raise DataError(
            f"the splits are larger than the data set: {parts} of {rows} images"
            f" leave too few to train {len(classes)} classes",
            where=where,
            remedy="lower " + " or ".join(f"data.{name}" for name in totals),
        )

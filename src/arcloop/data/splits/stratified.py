"""Seeded, stratified splits: every class is divided over all splits, with exact split sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.data.splits import SPLITS
from arcloop.data.splits.apportionment import MIN_ROWS, apportion, apportion_new, wanted_rows
from arcloop.data.splits.drawing import draw_groups, draw_splits
from arcloop.errors import ConfigError, DataError, list_some

Ints = npt.NDArray[np.int64]

_TOLERANCE = 0.01  # of all rows, by which the size of a split with groups may differ unreported


def stratify(
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    sizes: Mapping[str, int | float],
    seed: int,
    where: object,
    groups: Ints | None = None,
) -> dict[str, Ints]:
    """Split rows so that every class is divided over all splits in the same proportions.

    The number of rows of each class in each split is computed by the largest remainder method; the
    rows are drawn at random. With groups, all rows of a group are in the same split, and the
    numbers hold approximately. Every class has the rows in every split that validation requires:
    `MIN_ROWS`, and 2 in train if the class has enough images. Fractions that give a split fewer
    rows than that are raised, at the expense of the other fractions.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for error messages.
        sizes: Split -> number of rows (int) or fraction of all rows (float); the rest is `train`.
            A number is exact.
        seed: Seed of the random assignment.
        where: Origin of the rows, for error messages.
        groups: [N] group of each row; a negative number: the row is a group of its own. A group may
            contain several classes.

    Returns:
        Split -> its rows, ascending; `train` first.

    Raises:
        ConfigError: A number of rows is too small for the classes.
        DataError: Classes have too few images for the splits, or the splits are larger than the
            data set, or a class has too few groups. One message names all such classes.
    """
    counts = np.bincount(labels, minlength=len(classes)).astype(np.int64)
    totals = _split_sizes(counts, classes, sizes, where)
    rows_of = apportion(counts, totals, seed)
    names = ("train", *totals)
    table_CS = np.stack([counts - sum(rows_of.values()), *rows_of.values()], axis=1)
    if groups is None:
        split = draw_splits(labels, table_CS, seed)
    else:
        split = _draw_groups(
            labels, classes, groups, table_CS, [MIN_ROWS[n] for n in names], seed, where
        )
    return {name: np.flatnonzero(split == number) for number, name in enumerate(names)}


def assign_new(
    labels: Ints,
    stored_CS: Ints,
    classes: Sequence[str],
    *,
    sizes: Mapping[str, int | float],
    seed: int,
    groups: Ints | None = None,
    split_G: Ints | None = None,
) -> Ints:
    """Assign images that are added to a store to its splits.

    Stored images keep their split. New images of a class are assigned to the splits that are
    farthest below their share of the class, so that the splits approach `sizes`. A new class is
    added to every split. Which images of a class are assigned to which split is random. Images of a
    stored group go to its split, and those of a new group to one split.

    Args:
        labels: [N] labels of the new images.
        stored_CS: [stored classes, 4] stored images of each class in each of `SPLITS`.
        classes: Names of the stored classes, followed by those of new classes.
        sizes: Split -> number of rows (int) or fraction of all rows (float); the rest is `train`.
        seed: Seed of the random assignment.
        groups: [N] group of each new image, negative if it has none; None without groups.
        split_G: With groups, [G] position in `SPLITS` of each stored group, -1 for a new group.

    Returns:
        [N] positions in `SPLITS`.
    """
    counts_CS = np.zeros((len(classes), len(SPLITS)), np.int64)
    counts_CS[: len(stored_CS)] = stored_CS
    new_C = np.bincount(labels, minlength=len(classes))
    if groups is None or split_G is None:
        return draw_splits(labels, apportion_new(new_C, counts_CS, sizes), seed)
    wanted = wanted_rows(new_C, counts_CS, sizes)
    return draw_groups(labels, groups, counts_CS, *wanted, split_G=split_G, seed=seed)


def describe_sizes(
    rows: Mapping[str, Ints], sizes: Mapping[str, int | float], num_classes: int, *, grouped: bool
) -> list[str]:
    """Describe the splits of `stratify` whose number of rows is not the given one.

    Args:
        rows: Split -> its rows.
        sizes: As passed to `stratify`.
        num_classes: Number of classes.
        grouped: Whether groups were passed.

    Example:
        >>> rows = {"train": np.arange(75), "val": np.arange(25)}
        >>> describe_sizes(rows, {"val": 0.1}, 12, grouped=False)
        ['data.val=0.1 gives 25.0% (25 of 100 images): each of 12 classes needs 2 image(s) in val']
    """
    total, lines = sum(map(len, rows.values())), []
    for name, size in sizes.items():
        found, wanted = len(rows[name]), round(size * total) if isinstance(size, float) else size
        reason = f"each of {num_classes} classes needs {MIN_ROWS[name]} image(s) in {name}"
        if found < wanted:
            reason = "other splits need more images"
        if grouped:
            reason = "groups are not divided, and every class needs images in every split"
        if abs(found - wanted) > grouped * _TOLERANCE * total:
            share = f"{found / total:.1%} ({found} of {total} images)"
            lines.append(f"data.{name}={size} gives {share}: {reason}")
    return lines


def _draw_groups(
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    groups: Ints,
    table_CS: Ints,
    min_rows: Sequence[int],
    seed: int,
    where: object,
) -> Ints:
    """Draw a split for each group, and check that every class has rows in every split."""
    wanted = np.minimum(table_CS, [2, *min_rows[1:]])
    split_G = np.full(groups.max(initial=-1) + 1, -1)
    split = draw_groups(
        labels.astype(np.int64), groups, np.zeros_like(table_CS), table_CS, wanted,
        split_G=split_G, seed=seed,
    )  # fmt: skip
    found_CS = np.zeros_like(table_CS)
    np.add.at(found_CS, (labels, split), 1)
    if len(few := np.flatnonzero((found_CS < np.minimum(table_CS, min_rows)).any(axis=1))):
        unit_N = np.where(groups >= 0, groups, len(split_G) + np.arange(len(groups)))
        pairs = np.unique(np.stack([labels, unit_N]), axis=1)
        number_C = np.bincount(pairs[0])
        named = list_some([f"{classes[label]!r} ({number_C[label]})" for label in few.tolist()])
        raise DataError(
            "groups are not divided, and the groups of these classes could not be assigned to"
            f" train, val, gallery and query: {named}",
            where=where,
            remedy="give each class at least 6 groups, and more if its groups contain other"
            " classes, remove these classes, or pass data.split=disjoint, which needs no groups per"
            " class",
        )
    return split


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
        omit = f"leave them out with data.min_images={needed + 1}"
        raise DataError(
            f"too few images to split over train, {', '.join(totals)}: class {named}",
            where=where,
            remedy=f"give these classes at least {needed + 1} images ({needed} with"
            f" validation.min_images_per_class=1), {omit if 'query' in sizes else 'remove them'},"
            " or pass data.split=disjoint, which needs 2 images of a class",
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

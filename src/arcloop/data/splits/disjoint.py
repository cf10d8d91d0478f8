"""Splits by class: what judges is of classes that were never trained on.

The standard protocol of retrieval: Musgrave et al., "A Metric Learning Reality Check" (arXiv
2003.08505), section 3.1. Gallery and query are the same images there, and no image is its own
neighbour: leave-one-out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.data.splits.stratified import stratify
from arcloop.errors import DataError

Ints = npt.NDArray[np.int64]

_LEAST = 2  # of one class alone, every neighbour is right
_NAMED = 10


@dataclass(frozen=True)
class Division:
    """Which rows make which split, and how classes are numbered.

    Attributes:
        rows: Split -> its rows, ascending. Without `query`, gallery is also the query split, by
            leave-one-out.
        order: [C] position of each class among those given; those of train come first, for a head
            numbers its classes from 0 without a gap.
        num_train_classes: How many those are.
    """

    rows: Mapping[str, Ints]
    order: Ints
    num_train_classes: int

    @property
    def new_label(self) -> Ints:
        """[C] new label of each class given."""
        new = np.empty_like(self.order)
        new[self.order] = np.arange(len(self.order))
        return new

    @property
    def leave_one_out(self) -> bool:
        """Whether gallery is also the query split."""
        return "query" not in self.rows


def stratified(
    labels: Ints,
    classes: Sequence[str],
    sizes: Mapping[str, int | float],
    seed: int,
    where: object,
) -> Division:
    """Share out every class over all splits; see `stratify`."""
    rows = stratify(labels, classes, sizes, seed, where)
    return Division(rows, np.arange(len(classes)), len(classes))


def disjoint(
    labels: Ints,
    classes: Sequence[str],
    *,
    val_classes: float,
    test_classes: float,
    seed: int,
    where: object,
) -> Division:
    """Give each class with all its rows to train, val or gallery; the latter is also query.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for messages.
        val_classes: Classes of val: a number (int) or a share of all (float).
        test_classes: Classes of gallery, likewise.
        seed: Of the draw.
        where: Where the rows come from, for messages.

    Raises:
        DataError: There are too few classes, or a class of val or gallery has but one row.
    """
    totals = class_totals(
        len(classes), val_classes=val_classes, test_classes=test_classes, where=where
    )
    drawn = draw_classes(totals, seed)
    counts = np.bincount(labels, minlength=len(classes))
    judged = np.concatenate([drawn["val"], drawn["gallery"]])
    if len(lonely := judged[counts[judged] < _LEAST]):
        raise DataError(
            f"no image but one of {_named(lonely, classes)}: val and gallery are judged by"
            " leave-one-out, so an image needs a mate",
            where=where,
            remedy="give each class at least 2 images, or remove it",
        )
    split_of_class = np.empty(len(classes), np.int64)
    for number, of_split in enumerate(drawn.values()):
        split_of_class[of_split] = number
    split = split_of_class[labels]
    rows = {name: np.flatnonzero(split == number) for number, name in enumerate(drawn)}
    return Division(rows, np.concatenate(list(drawn.values())), totals["train"])


def disjoint_as_given(
    labels: Ints, classes: Sequence[str], rows: Mapping[str, Ints], where: object
) -> Division:
    """Take splits as they are, and see that train, val and what judges have no class in common.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for messages.
        rows: Split -> its rows; without `query`, gallery is also the query split.
        where: Where the rows come from, for messages.

    Raises:
        DataError: Names the classes that are on two sides.
    """
    there = {
        split: np.bincount(labels[of_split], minlength=len(classes)) > 0
        for split, of_split in rows.items()
    }
    sides = {
        "train": there["train"],
        "val": there["val"],
        "gallery or query": there["gallery"] | there.get("query", there["gallery"]),
    }
    shared = [
        f"{one} and {other}: {_named(np.flatnonzero(sides[one] & sides[other]), classes)}"
        for number, one in enumerate(sides)
        for other in list(sides)[number + 1 :]
        if (sides[one] & sides[other]).any()
    ]
    if shared:
        raise DataError(
            "data.split=disjoint, but classes are in " + "; in ".join(shared),
            where=where,
            remedy="keep each class on one side, or pass data.split=stratified",
        )
    order = np.concatenate([np.flatnonzero(side) for side in sides.values()])
    return Division(rows, order, int(there["train"].sum()))


def class_totals(
    num_classes: int, *, val_classes: float, test_classes: float, where: object
) -> dict[str, int]:
    """Divide a number of classes over train, val and gallery.

    Args:
        num_classes: How many there are.
        val_classes: Those of val: a number (int) or a share of all (float).
        test_classes: Those of gallery, likewise.
        where: Where the classes come from, for messages.

    Returns:
        Split -> number of its classes.

    Raises:
        DataError: There are too few of them.
    """
    totals = {
        name: round(size * num_classes) if isinstance(size, float) else size
        for name, size in (("val", val_classes), ("gallery", test_classes))
    }
    totals = {"train": max(0, num_classes - sum(totals.values()))} | totals
    if min(totals.values()) < _LEAST:
        parts = ", ".join(f"{total} of {split}" for split, total in totals.items())
        raise DataError(
            f"{num_classes} classes cannot be divided into {parts}: each takes {_LEAST} or more",
            where=where,
            remedy="change data.val_classes or data.test_classes, or add classes",
        )
    return totals


def draw_classes(totals: Mapping[str, int], seed: int) -> dict[str, Ints]:
    """Draw the classes of each split, ascending, of as many as all totals together."""
    parts = np.random.default_rng(seed).permutation(sum(totals.values()))
    ends = np.cumsum(list(totals.values()))[:-1]
    return {
        split: np.sort(of_split)
        for split, of_split in zip(totals, np.split(parts, ends), strict=True)
    }


def _named(labels: Ints, classes: Sequence[str]) -> str:
    names = ", ".join(repr(classes[label]) for label in labels[:_NAMED].tolist())
    return names + (f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else "")

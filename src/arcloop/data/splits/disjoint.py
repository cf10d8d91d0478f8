"""Splits without a common class: evaluation uses classes that the model was not trained on.

This is the standard protocol of retrieval: Musgrave et al., "A Metric Learning Reality Check"
(arXiv 2003.08505), section 3.1. Gallery and query are the same images; a query is excluded from
its own neighbours (leave-one-out).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError, list_some

Ints = npt.NDArray[np.int64]

_MIN_CLASSES = 2  # with one class, every neighbour is correct
_MIN_ROWS = 2  # with leave-one-out, a single image of a class has no neighbour of its class


@dataclass(frozen=True)
class SplitAssignment:
    """The rows of each split, and the order of the classes.

    Attributes:
        rows: Split -> its rows, ascending. Without `query`, gallery is also the query split, with
            leave-one-out.
        class_order: [C] positions of the classes in the source. Those of train come first, because
            a head numbers its classes from 0 without gaps.
        num_train_classes: Number of classes of train.
    """

    rows: Mapping[str, Ints]
    class_order: Ints
    num_train_classes: int

    @classmethod
    def with_shared_classes(cls, rows: Mapping[str, Ints], num_classes: int) -> Self:
        """Return an assignment in which every split may contain every class."""
        return cls(rows, np.arange(num_classes), num_classes)

    @property
    def new_labels(self) -> Ints:
        """[C] label of each class of the source."""
        labels = np.empty_like(self.class_order)
        labels[self.class_order] = np.arange(len(self.class_order))
        return labels

    @property
    def leave_one_out(self) -> bool:
        """Whether gallery is also the query split."""
        return "query" not in self.rows


def split_by_class(
    labels: Ints,
    classes: Sequence[str],
    *,
    val_classes: float,
    test_classes: float,
    seed: int,
    where: object,
) -> SplitAssignment:
    """Assign each class with all its rows to train, val or gallery. Gallery is also query.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for error messages.
        val_classes: Number (int) or fraction (float) of classes for val.
        test_classes: Number or fraction of classes for gallery.
        seed: Seed of the random assignment.
        where: Origin of the rows, for error messages.

    Raises:
        DataError: There are too few classes, or a class of val or gallery has only one row.
    """
    totals = count_classes(
        len(classes), val_classes=val_classes, test_classes=test_classes, where=where
    )
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    parts = np.split(shuffled, np.cumsum(list(totals.values()))[:-1])
    classes_of = {split: np.sort(part) for split, part in zip(totals, parts, strict=True)}
    counts = np.bincount(labels, minlength=len(classes))
    evaluated = np.concatenate([classes_of["val"], classes_of["gallery"]])
    if len(single := evaluated[counts[evaluated] < _MIN_ROWS]):
        raise DataError(
            f"only one image of {_names(single, classes)}: val and gallery are evaluated with"
            " leave-one-out, so each of their classes needs at least 2 images",
            where=where,
            remedy="add images to these classes, or remove them",
        )
    split_of_class = np.empty(len(classes), np.int64)
    for number, of_split in enumerate(classes_of.values()):
        split_of_class[of_split] = number
    split = split_of_class[labels]
    rows = {name: np.flatnonzero(split == number) for number, name in enumerate(classes_of)}
    return SplitAssignment(rows, np.concatenate(list(classes_of.values())), totals["train"])


def check_given_splits(
    labels: Ints, classes: Sequence[str], rows: Mapping[str, Ints], where: object
) -> SplitAssignment:
    """Return the given splits after checking that train, val and gallery have no common class.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for error messages.
        rows: Split -> its rows; without `query`, gallery is also the query split.
        where: Origin of the rows, for error messages.

    Raises:
        DataError: Classes are in more than one split; the message names them.
    """
    has_class = {
        split: np.bincount(labels[of_split], minlength=len(classes)) > 0
        for split, of_split in rows.items()
    }
    sides = {
        "train": has_class["train"],
        "val": has_class["val"],
        "gallery or query": has_class["gallery"] | has_class.get("query", has_class["gallery"]),
    }
    shared = [
        f"{one} and {other}: {_names(np.flatnonzero(sides[one] & sides[other]), classes)}"
        for one, other in itertools.combinations(sides, 2)
        if (sides[one] & sides[other]).any()
    ]
    if shared:
        raise DataError(
            "data.split=disjoint, but classes are in " + "; in ".join(shared),
            where=where,
            remedy="keep each class in one of them, or pass data.split=stratified",
        )
    order = np.concatenate([np.flatnonzero(side) for side in sides.values()])
    return SplitAssignment(rows, order, int(has_class["train"].sum()))


def count_classes(
    num_classes: int, *, val_classes: float, test_classes: float, where: object
) -> dict[str, int]:
    """Divide a number of classes over train, val and gallery.

    Args:
        num_classes: Number of all classes.
        val_classes: Number (int) or fraction (float) of classes for val.
        test_classes: Number or fraction of classes for gallery.
        where: Origin of the classes, for error messages.

    Returns:
        Split -> number of its classes.

    Raises:
        DataError: There are too few classes.
    """
    totals = {
        name: round(size * num_classes) if isinstance(size, float) else size
        for name, size in (("val", val_classes), ("gallery", test_classes))
    }
    totals = {"train": max(0, num_classes - sum(totals.values()))} | totals
    if min(totals.values()) < _MIN_CLASSES:
        parts = ", ".join(f"{total} for {split}" for split, total in totals.items())
        raise DataError(
            f"{num_classes} classes cannot be divided into {parts}: each split needs at least"
            f" {_MIN_CLASSES}",
            where=where,
            remedy="change data.val_classes or data.test_classes, or add classes",
        )
    return totals


def _names(labels: Ints, classes: Sequence[str]) -> str:
    return list_some([repr(classes[label]) for label in labels.tolist()])

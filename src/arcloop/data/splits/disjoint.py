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
        class_order: Positions of the classes in the source. Those of train come first, because a
            head numbers its classes from 0 without gaps. Classes of query only come last. Classes
            that are in no split may be missing.
        num_train_classes: Number of classes of train.
        notices: What differs from the settings, for the user.
    """

    rows: Mapping[str, Ints]
    class_order: Ints
    num_train_classes: int
    notices: Sequence[str] = ()

    @classmethod
    def with_shared_classes(cls, rows: Mapping[str, Ints], labels: Ints, num_classes: int) -> Self:
        """Return an assignment in which train contains all classes that are not only in query.

        Args:
            rows: Split -> its rows.
            labels: [N] class of each row.
            num_classes: Number of classes.
        """
        has_class = _find_classes(rows, labels, num_classes)
        only_query = has_class.pop("query", np.False_) & ~np.any(list(has_class.values()), axis=0)
        return cls(rows, np.argsort(only_query, kind="stable"), int((~only_query).sum()))

    def new_labels(self, num_classes: int) -> Ints:
        """Return the label of each class of the source, -1 if it is not in `class_order`."""
        labels = np.full(num_classes, -1)
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
    groups: Ints | None = None,
) -> SplitAssignment:
    """Assign each class with all its rows to train, val or gallery. Gallery is also query.

    Classes that share a group are in the same split. The number of classes per split then holds
    approximately.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for error messages.
        val_classes: Number (int) or fraction (float) of classes for val.
        test_classes: Number or fraction of classes for gallery.
        seed: Seed of the random assignment.
        where: Origin of the rows, for error messages.
        groups: [N] group of each row; a negative number: the row is a group of its own.

    Raises:
        DataError: There are too few classes, a class of val or gallery has only one row, or too
            many classes share groups.
    """
    totals = count_classes(
        len(classes), val_classes=val_classes, test_classes=test_classes, where=where
    )
    shuffled = np.random.default_rng(seed).permutation(len(classes))
    parts = np.split(shuffled, np.cumsum(list(totals.values()))[:-1])
    if groups is not None:
        parts = _join_classes(shuffled, labels, groups, list(totals.values()), where)
    classes_of = {split: np.sort(part) for split, part in zip(totals, parts, strict=True)}
    counts = np.bincount(labels, minlength=len(classes))
    evaluated = np.concatenate([classes_of["val"], classes_of["gallery"]])
    if len(single := evaluated[counts[evaluated] < _MIN_ROWS]):
        raise DataError(
            f"only one image of {_names(single, classes)}: val and gallery are evaluated with"
            " leave-one-out, so each of their classes needs at least 2 images",
            where=where,
            remedy="add images to these classes, or remove them, for image files with"
            " data.min_images=2",
        )
    split_of_class = np.empty(len(classes), np.int64)
    for number, of_split in enumerate(classes_of.values()):
        split_of_class[of_split] = number
    split = split_of_class[labels]
    rows = {name: np.flatnonzero(split == number) for number, name in enumerate(classes_of)}
    num_train_classes = len(classes_of["train"])
    return SplitAssignment(rows, np.concatenate(list(classes_of.values())), num_train_classes)


def _join_classes(
    shuffled: Ints, labels: Ints, groups: Ints, totals: Sequence[int], where: object
) -> list[Ints]:
    """Divide classes over splits so that classes that share a group are in the same split.

    Sets of connected classes are assigned, the largest first, to the split that lacks most classes.

    Args:
        shuffled: [C] the classes in random order.
        labels: [N] class of each row.
        groups: [N] group of each row; a negative number: the row is a group of its own.
        totals: Number of classes that each split should have.
        where: Origin of the rows, for error messages.

    Returns:
        Classes of each split.

    Raises:
        DataError: A split has too few classes.
    """
    from scipy.sparse import coo_array  # imported here, because it takes half a second
    from scipy.sparse.csgraph import connected_components

    in_group, num_classes = groups >= 0, len(shuffled)
    edges = labels[in_group], groups[in_group] + num_classes
    size = num_classes + groups.max(initial=-1) + 1
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(size, size))
    set_C = connected_components(graph, directed=False)[1][:num_classes]
    _, first, set_C, sizes = np.unique(
        set_C[shuffled], return_index=True, return_inverse=True, return_counts=True
    )
    lacks, split_of_set = np.array(totals), np.empty(len(sizes), np.int64)
    for number in np.lexsort((first, -sizes)).tolist():
        split_of_set[number] = split = lacks.argmax()
        lacks[split] -= sizes[number]
    split_C = split_of_set[set_C]
    parts = [shuffled[split_C == split] for split in range(len(totals))]
    if min(map(len, parts)) < _MIN_CLASSES:
        raise DataError(
            "classes that share a group are in one split with data.split=disjoint, but"
            f" {sizes.max()} of {num_classes} classes are connected by groups, and a split has"
            f" fewer than {_MIN_CLASSES} classes",
            where=where,
            remedy="include the class in the names of groups if they need not be shared, or pass"
            " data.split=stratified",
        )
    return parts


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
    has_class = _find_classes(rows, labels, len(classes))
    in_gallery = has_class["gallery"]
    is_evaluated = in_gallery | has_class.get("query", in_gallery)
    sides = {
        "train": has_class["train"],
        "val": has_class["val"],
        "gallery or query": is_evaluated,
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
    parts = (has_class["train"], has_class["val"], in_gallery, is_evaluated & ~in_gallery)
    order = np.concatenate([np.flatnonzero(part) for part in parts])
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


def _find_classes(
    rows: Mapping[str, Ints], labels: Ints, num_classes: int
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return split -> [C] whether it contains the class."""
    return {
        split: np.bincount(labels[of_split], minlength=num_classes) > 0
        for split, of_split in rows.items()
    }


def _names(labels: Ints, classes: Sequence[str]) -> str:
    return list_some([repr(classes[label]) for label in labels.tolist()])

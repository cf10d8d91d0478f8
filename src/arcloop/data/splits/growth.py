"""Which split a new image goes to, when those that are there stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.base import SPLITS
from arcloop.data.store.source_files import Held, new_classes_of_train

Ints = npt.NDArray[np.int64]

_LEAST = {"train": 1, "val": 2, "gallery": 1, "query": 1}
"""Images of a class without which it cannot be learned, judged or found."""


class Growth(Protocol):
    """A rule by which new images are split."""

    def assign(self, labels: Ints, held: Held, classes: Sequence[str]) -> Ints:
        """Choose a split for each new image.

        Args:
            labels: [N] labels of the new images.
            held: What the store holds.
            classes: Class names: those of the store, and new ones after them.

        Returns:
            [N] positions in `SPLITS`.

        Raises:
            DataError: The rule has no split for a class.
        """


@dataclass(frozen=True)
class WithTheirClass:
    """Where splits have no class in common, an image goes where its class is."""

    def assign(self, labels: Ints, held: Held, classes: Sequence[str]) -> Ints:
        if new := sorted(
            {classes[label] for label in labels.tolist() if label >= len(held.classes)}
        ):
            raise new_classes_of_train(new)
        of_class: Ints = held.counts.argmax(axis=1)
        return of_class[labels]


@dataclass(frozen=True)
class Shares:
    """How a source wants its images split.

    Attributes:
        sizes: Split -> rows (int) or share of all rows (float); the rest is `train`.
        seed: Of the draw.
    """

    sizes: Mapping[str, int | float]
    seed: int

    def assign(self, labels: Ints, held: Held, classes: Sequence[str]) -> Ints:
        """Draw a split for each new image, so that old and new together come near the sizes.

        Which images of a class go where is drawn at random; how many is by what a split lacks most.
        A class that the store does not hold yet comes into every split.
        """
        counts = np.zeros((len(classes), len(SPLITS)), np.int64)
        counts[: len(held.classes)] = held.counts
        new = np.bincount(labels, minlength=len(classes))
        table = share_out(new, counts, self.sizes)
        shuffled = np.random.default_rng(self.seed).permutation(len(labels))
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        split = np.empty(len(labels), np.int64)
        split[by_class] = np.repeat(np.tile(np.arange(len(SPLITS)), len(classes)), table.ravel())
        return split


def share_out(new: Ints, held: Ints, sizes: Mapping[str, int | float]) -> Ints:
    """Give each new image of a class to the split that lacks most of that class.

    Args:
        new: [C] new images of each class.
        held: [C, splits] images that are there.
        sizes: Split -> rows or share of all rows.

    Returns:
        [C, splits] new images of each class for each split.

    Example:
        >>> held = np.array([[6, 2, 1, 1]])
        >>> share_out(np.array([10]), held, {"val": 0.2, "gallery": 0.2, "query": 0.2})
        array([[2, 2, 3, 3]])
    """
    of_class = new + held.sum(axis=1)
    rows = int(of_class.sum())
    wanted = {
        name: size * rows if isinstance(size, float) else size for name, size in sizes.items()
    }
    wanted = {"train": rows - sum(wanted.values()), **wanted}
    share = np.array([wanted[split] / rows for split in SPLITS])
    # A split that is smaller than the number of classes cannot have each of them.
    least = np.array([min(_LEAST[split], wanted[split] // len(new)) for split in SPLITS])
    now, left = held.copy(), new.copy()
    while len(some := np.flatnonzero(left)):
        lack = of_class[some, None] * share - now[some]
        lack += rows * (now[some] < least) + rows * (now[some] < np.minimum(least, 1))
        now[some, lack.argmax(axis=1)] += 1
        left[some] -= 1
    return now - held

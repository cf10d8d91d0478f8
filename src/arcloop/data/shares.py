"""Which split a new image goes to, when those that are there stay where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.data.source import SPLITS

Ints = npt.NDArray[np.int64]

_LEAST = {"train": 1, "val": 2, "gallery": 1, "query": 1}
"""Images of a class without which it cannot be learned, judged or found."""


@dataclass(frozen=True)
class Shares:
    """How a source wants its images split.

    Attributes:
        sizes: Split -> rows (int) or share of all rows (float); the rest is `train`.
        seed: Of the draw.
    """

    sizes: Mapping[str, int | float]
    seed: int

    def assign(self, labels: Ints, held: Ints) -> Ints:
        """Draw a split for each new image, so that old and new together come near the sizes.

        Which images of a class go where is drawn at random; how many is by what a split lacks most.
        A class that the store does not hold yet comes into every split.

        Args:
            labels: [N] labels of the new images.
            held: [C, splits] images of each class in each of `SPLITS` of the store.

        Returns:
            [N] positions in `SPLITS`.
        """
        new = np.bincount(labels, minlength=len(held))
        table = share_out(new, held, self.sizes)
        shuffled = np.random.default_rng(self.seed).permutation(len(labels))
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        split = np.empty(len(labels), np.int64)
        split[by_class] = np.repeat(np.tile(np.arange(len(SPLITS)), len(held)), table.ravel())
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

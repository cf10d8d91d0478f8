"""Source of the images of a store, of which one fold is held out from training.

Shapes: N images of the store, in the order of its splits; C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.atomic import sha256_json
from arcloop.config.value_types import NonNegativeInt, PositiveInt
from arcloop.data.sources import Encode, Listing, RowBlock, Source
from arcloop.data.splits import SPLITS
from arcloop.data.store import Store
from arcloop.data.store.shards import rows_per_block
from arcloop.runtime.images import Conversion

Ints = npt.NDArray[np.int64]

MIN_IMAGES = 3
"""Minimum number of images of a class: one is held out, and two remain to compare it with."""
_VAL_CLASSES = 500


def assign_folds(labels_N: Ints, folds: int) -> Ints:
    """Divide the images of each class over folds at random, with a fixed seed.

    Args:
        labels_N: Class of each image, from 0.
        folds: Number of folds.

    Returns:
        int64 [N], the fold of each image; -1 in classes with fewer than `MIN_IMAGES` images.

    >>> sorted(assign_folds(np.array([0, 0, 0, 0, 1]), folds=4).tolist())
    [-1, 0, 1, 2, 3]
    """
    random = np.random.default_rng(0)
    order = random.permutation(len(labels_N))
    order = order[np.argsort(labels_N[order], kind="stable")]
    count_C = np.bincount(labels_N)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(count_C) - count_C, count_C)
    first_C = random.integers(
        folds, size=len(count_C)
    )  # so that all folds have about the same size
    fold_N = np.empty(len(order), np.int64)
    fold_N[order] = (rank + first_C[labels_N[order]]) % folds
    fold_N[count_C[labels_N] < MIN_IMAGES] = -1
    return fold_N


class StoredImages:
    """The images of all splits of a store, which are numbered in the order of the splits.

    Args:
        store: The store.

    Attributes:
        store: The store.
        labels: int64 [N].
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._splits = SPLITS[:-1] if store.leave_one_out else SPLITS
        self._ends = np.cumsum([store.rows(split) for split in self._splits])
        self.labels = np.concatenate([store.labels(split) for split in self._splits])

    def locate(self, number: int) -> tuple[str, int]:
        """Return the split of an image and its row there."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        return self._splits[place], number - int(self._ends[place - 1] if place else 0)

    def read(self, numbers: Ints) -> npt.NDArray[np.uint8]:
        """Return images, uint8 [B, H, W, C]; `numbers` are in ascending order."""
        parts, start = [], 0
        for place, stop in enumerate(np.searchsorted(numbers, self._ends).tolist()):
            first = self._ends[place - 1] if place else 0
            parts.append(self.store.gather(self._splits[place], numbers[start:stop] - first)[0])
            start = stop
        return np.concatenate(parts)


@dataclass(kw_only=True)
class StoreFold(Source):
    """The images of a store: gallery has those of one fold, and train the others.

    val consists of two images of each of at most 500 classes of train, because training needs this
    split; its metrics do not apply to new images. query is empty. Classes with fewer than
    `MIN_IMAGES` images are left out.

    Attributes:
        store_dir: Folder of the store.
        fold: The fold that is held out, from 0.
        folds: Number of folds.
    """

    store_dir: str
    fold: NonNegativeInt
    folds: PositiveInt

    @cached_property
    def images(self) -> StoredImages:
        """The images of the store."""
        return StoredImages(Store.open(Path(self.store_dir)))

    @property
    def conversion(self) -> Conversion:
        """How the image files of the store were converted."""
        return self.images.store.conversion

    def fingerprint(self) -> str:
        return sha256_json([self.images.store.artifact.sha256, self.fold, self.folds])

    def open(self) -> Listing:
        return FoldListing(self)


class FoldListing(Listing):
    """Contents of a `StoreFold`.

    Attributes:
        numbers: Split -> number of each of its images in the store.
    """

    leave_one_out = False

    def __init__(self, source: StoreFold) -> None:
        images = self._images = source.images
        fold_N = assign_folds(images.labels, source.folds)
        used = np.unique(images.labels[fold_N >= 0])
        new_C = np.full(len(images.store.classes), -1)
        new_C[used] = np.arange(len(used))
        self._label_N = new_C[images.labels]
        self.classes = [images.store.classes[label] for label in used.tolist()]
        self.num_train_classes = len(self.classes)
        self.image_shape = images.store.image_shape
        train = np.flatnonzero((fold_N >= 0) & (fold_N != source.fold))
        self.numbers = {
            "train": train,
            "val": train[_first_two(self._label_N[train])],
            "gallery": np.flatnonzero(fold_N == source.fold),
            "query": train[:0],
        }
        self.rows = {split: len(numbers) for split, numbers in self.numbers.items()}

    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        block = rows_per_block(self.image_shape)
        for split, numbers in self.numbers.items():
            for start in range(0, len(numbers), block):
                part = numbers[start : start + block]
                yield RowBlock(split, encode(self._images.read(part)), self._label_N[part])


def _first_two(labels_N: Ints) -> Ints:
    """Return, ascending, the first two images of each of the first classes that have two."""
    order = np.argsort(labels_N, kind="stable")
    sorted_N = labels_N[order]
    starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    starts = starts[np.diff(starts, append=len(order)) >= 2][:_VAL_CLASSES]
    return np.sort(np.concatenate([order[starts], order[starts + 1]]))

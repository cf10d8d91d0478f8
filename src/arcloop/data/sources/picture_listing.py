"""Listing of image files and their splits: reads them, and compares them with a store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from arcloop.data.sources import Encode, Listing, RowBlock
from arcloop.data.sources.decoding import ImageBlock, decode_blocks
from arcloop.data.sources.picture_table import Groups, ImageList
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import rows_per_block
from arcloop.data.store.source_files import (
    SourceChanges,
    StoreContents,
    compare_files,
    file_versions,
    hash_files,
)
from arcloop.errors import DataError, list_some

if TYPE_CHECKING:
    from arcloop.data.sources.pictures import PictureSource

Ints = npt.NDArray[np.int64]
_BLOCK_ROWS = 256


def block_rows(image_shape: tuple[int, int, int]) -> int:
    """Return the number of files that a process decodes at a time."""
    return min(_BLOCK_ROWS, rows_per_block(image_shape))


@dataclass
class PictureListing(Listing):
    """Image files, and the files of each split.

    Attributes:
        files: All image files.
        labels: [N] label of each file.
        order: Split -> numbers of its files.
        source: The source of the files.
        has_given_splits: Whether the source defines the splits.
        groups: The group of each file, if the source has groups.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    files: ImageList
    labels: npt.NDArray[np.integer]
    order: Mapping[str, Ints]
    source: PictureSource
    has_given_splits: bool
    num_train_classes: int
    leave_one_out: bool
    groups: Groups | None
    passed_over: Sequence[str]
    notices: Sequence[str]
    dropped: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.root = self.files.root
        self.group_names = None if self.groups is None else self.groups.names
        self.rows = {split: len(numbers) for split, numbers in self.order.items()}

    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        size = block_rows(self.image_shape)
        num_blocks = sum(math.ceil(rows / size) for rows in self.rows.values())
        unreadable: list[tuple[str, str]] = []
        for block in decode_blocks(self._blocks(encode, size), max(1, min(workers, num_blocks))):
            unreadable += block.unreadable
            yield block
        if unreadable and self.source.on_bad_image == "fail":
            indent = "\n    "
            lines = [f"{path}: {reason}" for path, reason in sorted(unreadable)]
            raise DataError(
                f"{len(unreadable)} of {sum(self.rows.values())} images cannot be read:"
                f"{indent}{list_some(lines, separator=indent)}",
                remedy="repair or remove them, or skip them with data.on_bad_image=skip",
            )

    def _blocks(self, encode: Encode, size: int) -> Iterator[ImageBlock]:
        for split, numbers in self.order.items():
            for start in range(0, len(numbers), size):
                chosen = numbers[start : start + size].tolist()
                yield self.files.block(
                    chosen,
                    split=split,
                    labels=self.labels[chosen].tolist(),
                    image_shape=self.image_shape,
                    conversion=self.source.conversion,
                    encode=encode,
                    groups=None if self.groups is None else self.groups.numbers[chosen].tolist(),
                )

    def compare_with(self, contents: StoreContents, *, full: bool = False) -> SourceChanges:
        label_of = {name: label for label, name in enumerate(contents.classes)}
        labels = np.array([label_of.get(name, -1) for name in self.classes], np.int64)
        splits = None
        if self.has_given_splits:
            splits = np.full(len(self.labels), -1, np.int64)
            for name, numbers in self.order.items():
                splits[numbers] = SPLITS.index(name)
        return compare_files(
            contents,
            np.array([self.files.relative(number) for number in range(len(self.files))], bytes),
            lambda numbers: file_versions([self.files.path(n) for n in numbers.tolist()]),
            lambda numbers: hash_files(self.files.path(n) for n in numbers.tolist()),
            labels[self.labels],
            splits,
            self.groups.renumber(contents.group_names).numbers if self.groups else None,
            full=full,
        )

    def select_new(self, is_new: npt.NDArray[np.bool_], contents: StoreContents) -> PictureListing:
        stored = set(contents.classes)
        classes = [*contents.classes, *(name for name in self.classes if name not in stored)]
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[name] for name in self.classes], np.int64)[self.labels]
        numbers = np.flatnonzero(is_new)
        order = {split: of_split[is_new[of_split]] for split, of_split in self.order.items()}
        num_train_classes = self._extend_train_classes(classes, labels[numbers], contents)
        groups = self.groups and self.groups.renumber(contents.group_names)
        if not self.has_given_splits:
            new = groups and replace(groups, numbers=groups.numbers[numbers])
            drawn = self.source.assign_new(labels[numbers], contents, classes, new)
            order = {split: numbers[drawn == SPLITS.index(split)] for split in self.order}
        for what, in_source, in_store in (
            ("groups", self.groups is not None, contents.groups is not None),
            ("images of query", not self.leave_one_out, not contents.leave_one_out),
        ):
            if in_source != in_store:
                one, other = ("source", "store") if in_source else ("store", "source")
                raise DataError(
                    f"the {one} has {what}, but the {other} has none",
                    remedy="prepare a new store without append=true",
                )
        return replace(
            self,
            classes=classes,
            labels=labels,
            order=order,
            num_train_classes=num_train_classes,
            groups=groups,
            notices=(),
        )

    def _extend_train_classes(
        self, classes: Sequence[str], new_labels: Ints, contents: StoreContents
    ) -> int:
        """Return the number of train classes of a store after images are appended.

        Args:
            classes: The classes of the store, followed by new ones.
            new_labels: Labels of the new images.
            contents: Contents of the store.

        Raises:
            DataError: New classes of train would not have the first labels.
        """
        label_of, num_stored = {n: label for label, n in enumerate(classes)}, len(contents.classes)
        trained = [label_of[name] for name in self.classes[: self.num_train_classes]]
        if self.source.split == "disjoint" and not self.has_given_splits:
            # A new class may belong to any split.
            trained = np.unique(new_labels[new_labels >= num_stored]).tolist()
        num_train_classes = contents.num_train_classes
        if self.source.split == "stratified" and num_train_classes == num_stored:
            num_train_classes += sum(label >= num_stored for label in trained)
        if late := sorted(classes[label] for label in trained if label >= num_train_classes):
            raise DataError(
                f"new classes of train cannot be added to this store: {list_some(late)}."
                " The classes of train have the first labels, before those of other splits only,"
                " and the labels of a store do not change",
                remedy="prepare a new store without append=true",
            )
        return num_train_classes

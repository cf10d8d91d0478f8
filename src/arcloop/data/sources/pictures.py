"""Sources of image files: how the files are listed, split, compared with a store, and decoded."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import Fraction, ImageSize, NonNegativeInt, PositiveInt
from arcloop.data.sources import Encode, Listing, RowBlock, Source, height_and_width
from arcloop.data.sources.decoding import FileBlock, decode_blocks
from arcloop.data.splits import SPLITS
from arcloop.data.splits.disjoint import SplitAssignment, check_given_splits, split_by_class
from arcloop.data.splits.stratified import assign_new, stratify
from arcloop.data.store.shards import rows_per_block
from arcloop.data.store.source_files import (
    SourceChanges,
    StoreContents,
    compare_files,
    file_versions,
    hash_files,
)
from arcloop.errors import DataError, list_some

Ints = npt.NDArray[np.int64]
_BLOCK_ROWS = 256


class FileList:
    """Numbered paths, packed into one buffer. Memory use per path is its length plus 8 bytes.

    Args:
        root: Folder that relative paths start from.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._buffer, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, path: str) -> None:
        """Add a path, relative to the root or absolute."""
        self._buffer += os.fsencode(path)
        self._ends.append(len(self._buffer))

    def relative(self, number: int) -> bytes:
        """Return a path as passed to `append`; stores identify files by these paths."""
        start = self._ends[number - 1] if number else 0
        return bytes(self._buffer[start : self._ends[number]])

    def path(self, number: int) -> str:
        """Return a path that includes the root."""
        return os.path.join(self.root, os.fsdecode(self.relative(number)))  # noqa: PTH118 - speed


@dataclass
class PictureListing(Listing):
    """Image files, and the files of each split.

    Attributes:
        files: All image files.
        labels: [N] label of each file.
        order: Split -> numbers of its files.
        source: The source of the files.
        has_given_splits: Whether the source defines the splits.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    files: FileList
    labels: npt.NDArray[np.integer]
    order: Mapping[str, Ints]
    source: PictureSource
    has_given_splits: bool
    num_train_classes: int
    leave_one_out: bool

    def __post_init__(self) -> None:
        self.root = self.files.root
        self.rows = {split: len(numbers) for split, numbers in self.order.items()}

    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        size = min(_BLOCK_ROWS, rows_per_block(self.image_shape))
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

    def _blocks(self, encode: Encode, size: int) -> Iterator[FileBlock]:
        for split, numbers in self.order.items():
            for start in range(0, len(numbers), size):
                chosen = numbers[start : start + size].tolist()
                yield FileBlock(
                    split,
                    self.files.root,
                    [self.files.relative(number) for number in chosen],
                    self.labels[chosen].tolist(),
                    self.image_shape,
                    self.source.max_value,
                    encode,
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
            full=full,
        )

    def select_new(self, is_new: npt.NDArray[np.bool_], contents: StoreContents) -> PictureListing:
        stored = set(contents.classes)
        classes = [*contents.classes, *(name for name in self.classes if name not in stored)]
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[name] for name in self.classes], np.int64)[self.labels]
        numbers = np.flatnonzero(is_new)
        order = {split: of_split[is_new[of_split]] for split, of_split in self.order.items()}
        num_train_classes = contents.num_train_classes
        if num_train_classes == len(stored):  # every split has every class
            num_train_classes = len(classes)
        else:
            checked = labels[order["train"] if self.has_given_splits else numbers]
            if new := [classes[label] for label in np.unique(checked) if label >= len(stored)]:
                raise DataError(
                    "new classes cannot be added to a store with class-disjoint splits:"
                    f" {list_some(sorted(new))}. The classes of train have the first labels, and"
                    " the labels of a store do not change",
                    remedy="prepare a new store without append=true",
                )
        if not self.has_given_splits:
            drawn = self.source.assign_new(labels[numbers], contents.class_counts, classes)
            order = {split: numbers[drawn == SPLITS.index(split)] for split in self.order}
        if self.leave_one_out != contents.leave_one_out:
            raise DataError(
                "the source has images of query, but the store has none"
                if contents.leave_one_out
                else "the store has images of query, but the source has none",
                remedy="prepare a new store without append=true",
            )
        return replace(
            self, classes=classes, labels=labels, order=order, num_train_classes=num_train_classes
        )


@dataclass(kw_only=True)
class PictureSource(Source):
    """Base class of sources of image files, which may have any size and mode.

    If the source does not define the splits, images are assigned to them at random.

    Attributes:
        image_size: Height and width, or one number for both, to which images are resized.
        channels: 1 (grey) or 3 (RGB), to which images are converted.
        max_value: Value of a grey image of more than 8 bits that becomes 255, e.g. 4095 for 12-bit
            data in 16-bit files. Larger values become 255, too.
        val: If stratified, rows (int) or fraction of all rows (float) for val.
        gallery: If stratified, rows or fraction for gallery.
        query: If stratified, rows or fraction for query.
        split_seed: Seed of the random assignment.
        on_bad_image: "fail": an unreadable image is an error. "skip": unreadable images are skipped
            and counted.
    """

    appendable = True

    image_size: ImageSize
    channels: Literal[1, 3]
    max_value: PositiveInt
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
    query: PositiveInt | Fraction
    split_seed: NonNegativeInt
    on_bad_image: Literal["fail", "skip"]

    def required_splits(self) -> tuple[str, ...]:
        """Return the splits that a source with given splits must contain."""
        required = {"stratified": SPLITS, "disjoint": ("train", "val", "gallery"), "evaluation": ()}
        return required[self.split]

    def _make_listing(
        self,
        files: FileList,
        labels: Ints,
        classes: Sequence[str],
        given: Mapping[str, Ints] | None,
        *,
        where: object,
        layout: str,
    ) -> PictureListing:
        """Split image files.

        Args:
            files: The image files.
            labels: [N] class of each, a position in `classes`.
            classes: Class names.
            given: Split -> numbers of its files, if the source defines the splits.
            where: Location of the source, for error messages.
            layout: How the source defines the split of an image, for error messages.

        Raises:
            DataError: The images cannot be split according to the settings.
        """
        if given is None:
            splits = self._draw_splits(labels, classes, where)
        elif empty := [split for split in self.required_splits() if not len(given[split])]:
            raise DataError(
                f"no images in {', '.join(empty)}",
                where=where,
                remedy=f"add images to these splits, by {layout}",
            )
        elif self.split == "evaluation":
            splits = self._evaluation_splits(given, len(classes), where, layout)
        elif self.split == "disjoint":
            present = {split: numbers for split, numbers in given.items() if len(numbers)}
            splits = check_given_splits(labels, classes, present, where)
        else:
            splits = SplitAssignment.with_shared_classes(given, len(classes))
        height, width = height_and_width(self.image_size)
        return PictureListing(
            classes=[classes[position] for position in splits.class_order.tolist()],
            image_shape=(height, width, self.channels),
            files=files,
            labels=splits.new_labels[labels],
            order=splits.rows,
            source=self,
            has_given_splits=given is not None,
            num_train_classes=splits.num_train_classes,
            leave_one_out=splits.leave_one_out,
        )

    def _draw_splits(self, labels: Ints, classes: Sequence[str], where: object) -> SplitAssignment:
        if self.split == "stratified":
            rows = stratify(labels, classes, self._sizes(), self.split_seed, where)
            return SplitAssignment.with_shared_classes(rows, len(classes))
        if self.split == "evaluation":
            everything = {"gallery": np.arange(len(labels)), "query": labels[:0]}
            return self._evaluation_splits(everything, len(classes), where)
        return split_by_class(
            labels,
            classes,
            val_classes=self.val_classes,
            test_classes=self.test_classes,
            seed=self.split_seed,
            where=where,
        )

    def _evaluation_splits(
        self, given: Mapping[str, Ints], num_classes: int, where: object, layout: str = ""
    ) -> SplitAssignment:
        present = {split: given[split] for split in ("gallery", "query") if len(given[split])}
        if not present:
            raise DataError(
                "no images in gallery and query", where=where, remedy=f"add some, by {layout}"
            )
        none = np.empty(0, np.int64)
        rows = {"train": none, "val": none, "gallery": none} | present
        return SplitAssignment.with_shared_classes(rows, num_classes)

    def assign_new(self, labels: Ints, stored_CS: Ints, classes: Sequence[str]) -> Ints:
        """Assign images that are added to a store to splits; see `splits.stratified.assign_new`."""
        if self.split == "evaluation":
            return np.full(len(labels), SPLITS.index("gallery"))
        if self.split == "disjoint":  # to the split of the class
            split_C: Ints = stored_CS.argmax(axis=1)
            return split_C[labels]
        return assign_new(labels, stored_CS, classes, sizes=self._sizes(), seed=self.split_seed)

    def _sizes(self) -> dict[str, int | float]:
        return {"val": self.val, "gallery": self.gallery, "query": self.query}

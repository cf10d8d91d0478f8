"""Base class of the sources of image files, which assigns the files to splits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import Colour, Fraction, ImageSize, NonNegativeInt, PositiveInt
from arcloop.data.sources import Listing, Source, height_and_width
from arcloop.data.sources.duplicates import find_duplicates
from arcloop.data.sources.picture_listing import PictureListing, block_rows
from arcloop.data.sources.picture_table import Groups, PictureTable
from arcloop.data.splits import SPLITS
from arcloop.data.splits.disjoint import SplitAssignment, check_given_splits, split_by_class
from arcloop.data.splits.stratified import assign_new, describe_sizes, stratify
from arcloop.data.store.source_files import StoreContents
from arcloop.errors import DataError, list_some
from arcloop.runtime.images import Conversion

Ints = npt.NDArray[np.int64]
_SPLIT_VERSION = 2  # increase it when a change of the code changes the splits that are drawn


@dataclass(frozen=True)
class SourceFiles:
    """The image files of a source.

    Attributes:
        table: The files.
        where: Location of the source, for error messages.
        layout: How the source defines the split of an image, for error messages.
    """

    table: PictureTable
    where: Path
    layout: str


@dataclass(kw_only=True)
class PictureSource(Source):
    """Base class of sources of image files, which may have any size and mode.

    If the source does not define the splits, images are assigned to them at random.

    Attributes:
        image_size: Height and width, or one number for both, to which images are resized.
        channels: 1 (grey) or 3 (RGB), to which images are converted.
        max_value: Value of a grey image of more than 8 bits that becomes 255, e.g. 4095 for 12-bit
            data in 16-bit files. Larger values also become 255.
        background: Colour of transparent parts, and of the border of `resize="pad"`: "black",
            "white", "mean" for the mean colour of the image, or [R, G, B] in 0..255. None: black,
            and the number of transparent images is printed.
        resize: "stretch", "pad" or "crop", see `arcloop.runtime.images.Conversion`.
        val: If stratified, rows (int) or fraction of all rows (float) for val.
        gallery: If stratified, rows or fraction for gallery.
        query: If stratified, rows or fraction for query.
        split_seed: Seed of the random assignment.
        min_images: Classes with fewer images are left out and reported, except classes with images
            in query only.
        on_duplicate: "error": validation refuses equal images in different splits. "drop": of files
            with equal pixels, one is kept, before the splits are drawn; all files are decoded
            twice. "warn": validation reports equal images as warnings.
        on_bad_image: "fail": an unreadable image is an error. "skip": unreadable images are skipped
            and counted.
    """

    appendable = True

    image_size: ImageSize
    channels: Literal[1, 3]
    max_value: PositiveInt
    background: Colour | None
    resize: Literal["stretch", "pad", "crop"]
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
    query: PositiveInt | Fraction
    split_seed: NonNegativeInt
    min_images: NonNegativeInt
    on_bad_image: Literal["fail", "skip"]
    on_duplicate: Literal["error", "drop", "warn"]

    @abstractmethod
    def read_files(self) -> SourceFiles:
        """List the files of the source.

        Raises:
            DataError: The source does not exist or has faults.
        """

    def open(self) -> Listing:
        return self._make_listing(self.read_files())

    def open_for_store(self, workers: int) -> Listing:
        found = self.read_files()
        if self.on_duplicate != "drop":
            return self._make_listing(found)
        table, shape = found.table, (*height_and_width(self.image_size), self.channels)
        duplicates = find_duplicates(
            table, shape, self.conversion, block_rows=block_rows(shape), workers=workers
        )
        kept = np.setdiff1d(np.arange(len(table.labels)), duplicates.dropped)
        listing = self._make_listing(
            replace(found, table=table.select(kept)), min_images=max(1, self.min_images)
        )
        return replace(listing, dropped=duplicates.describe(table))

    def required_splits(self) -> tuple[str, ...]:
        """Return the splits that a source with given splits must contain."""
        required = {"stratified": SPLITS, "disjoint": ("train", "val", "gallery"), "evaluation": ()}
        return required[self.split]

    def settings(self) -> dict[str, Any]:
        values = super().settings() | {"split_version": _SPLIT_VERSION}
        defaults = {"background": "black", "resize": "stretch", "on_duplicate": "error"}
        for name, default in defaults.items():
            if values[name] in (None, default):  # keep the keys of stores of earlier versions
                del values[name]
        return values

    @property
    def conversion(self) -> Conversion:
        """How image files are converted to `image_size` and `channels`."""
        return Conversion(self.max_value, self.background or "black", self.resize)

    def _make_listing(self, found: SourceFiles, min_images: int | None = None) -> PictureListing:
        """Split image files; leave out classes with fewer than `min_images`.

        Raises:
            DataError: The images cannot be split according to the settings.
        """
        where, layout = found.where, found.layout
        minimum = self.min_images if min_images is None else min_images
        table, passed_over = found.table.drop_small_classes(minimum, where)
        labels, classes, given = table.labels, table.classes, table.given
        if given is None:
            splits = self._draw_splits(labels, classes, table.groups, where)
        elif empty := [split for split in self.required_splits() if not len(given[split])]:
            raise DataError(
                f"no images in {', '.join(empty)}",
                where=where,
                remedy=f"add images to these splits, by {layout}",
            )
        elif self.split == "evaluation":
            splits = self._evaluation_splits(given, labels, len(classes), where, layout)
        elif self.split == "disjoint":
            present = {split: numbers for split, numbers in given.items() if len(numbers)}
            splits = check_given_splits(labels, classes, present, where)
        else:
            splits = SplitAssignment.with_shared_classes(given, labels, len(classes))
        height, width = height_and_width(self.image_size)
        return PictureListing(
            classes=[classes[position] for position in splits.class_order.tolist()],
            image_shape=(height, width, self.channels),
            files=table.files,
            labels=splits.new_labels(len(classes))[labels],
            order=splits.rows,
            source=self,
            has_given_splits=given is not None,
            num_train_classes=splits.num_train_classes,
            leave_one_out=splits.leave_one_out,
            groups=table.groups,
            passed_over=passed_over,
            notices=splits.notices,
        )

    def _draw_splits(
        self, labels: Ints, classes: Sequence[str], groups: Groups | None, where: object
    ) -> SplitAssignment:
        numbers = None if groups is None else groups.numbers
        if self.split == "stratified":
            rows = stratify(labels, classes, self._sizes(), self.split_seed, where, numbers)
            splits = SplitAssignment.with_shared_classes(rows, labels, len(classes))
            grouped = numbers is not None
            notices = describe_sizes(rows, self._sizes(), len(classes), grouped=grouped)
            return replace(splits, notices=notices)
        if self.split == "evaluation":
            everything = {"gallery": np.arange(len(labels)), "query": labels[:0]}
            return self._evaluation_splits(everything, labels, len(classes), where)
        return split_by_class(
            labels,
            classes,
            val_classes=self.val_classes,
            test_classes=self.test_classes,
            seed=self.split_seed,
            where=where,
            groups=numbers,
        )

    def _evaluation_splits(
        self,
        given: Mapping[str, Ints],
        labels: Ints,
        num_classes: int,
        where: object,
        layout: str = "",
    ) -> SplitAssignment:
        present = {split: given[split] for split in ("gallery", "query") if len(given[split])}
        if not present:
            raise DataError(
                "no images in gallery and query", where=where, remedy=f"add some, by {layout}"
            )
        none = np.empty(0, np.int64)
        rows = {"train": none, "val": none, "gallery": none} | present
        splits = SplitAssignment.with_shared_classes(rows, labels, num_classes)
        used = np.unique(labels[np.concatenate(list(rows.values()))])
        order = splits.class_order[np.isin(splits.class_order, used)]
        return replace(splits, class_order=order, num_train_classes=0)

    def assign_new(
        self, labels: Ints, stored: StoreContents, classes: Sequence[str], groups: Groups | None
    ) -> Ints:
        """Assign images that are added to a store to splits; see `splits.stratified.assign_new`.

        Raises:
            DataError: With disjoint splits, the group of an image is not in the split of its class.
        """
        if self.split == "evaluation":
            return np.full(len(labels), SPLITS.index("gallery"))
        numbers = None if groups is None else groups.numbers
        split_G = None if groups is None else stored.split_of_groups(len(groups.names))
        if self.split == "stratified":
            return assign_new(
                labels, stored.class_counts, classes, sizes=self._sizes(), seed=self.split_seed,
                groups=numbers, split_G=split_G,
            )  # fmt: skip
        split_N: Ints = stored.class_counts.argmax(axis=1)[labels]  # that of the class
        if groups is not None and split_G is not None:
            in_group = groups.numbers >= 0
            group_n, split_n = groups.numbers[in_group], split_N[in_group]
            is_new = split_G[group_n] < 0
            split_G[group_n[is_new]] = split_n[is_new]
            if len(joined := np.unique(group_n[split_G[group_n] != split_n])):
                raise DataError(
                    "classes that share a group are in one split with data.split=disjoint, but new"
                    " images join classes of several splits:"
                    f" group {list_some([repr(groups.names[n]) for n in joined.tolist()])}",
                    remedy="correct these groups, or prepare a new store without append=true",
                )
        return split_N

    def _sizes(self) -> dict[str, int | float]:
        return {"val": self.val, "gallery": self.gallery, "query": self.query}

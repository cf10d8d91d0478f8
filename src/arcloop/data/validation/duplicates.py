"""Findings about equal images, and about images that look alike."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.duplicates import digest_images, equal_groups
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import Images
from arcloop.data.validation.files import Ints, ShardFiles, StoreFiles
from arcloop.data.validation.findings import Level
from arcloop.data.validation.near_duplicates import hash_images, similar_images

_GALLERY = SPLITS.index("gallery")


@dataclass
class StoredRows:
    """The rows of all shards, numbered in the order of the shards.

    Attributes:
        shards: All shards.
        files: The files of the store, which receives the findings.
        labels: [N] label of each row; -1 if it is invalid.
        classes: Class names.
        leave_one_out: Whether gallery is also the query split.
    """

    shards: Sequence[ShardFiles]
    files: StoreFiles
    labels: npt.NDArray[np.int32]
    classes: Sequence[str]
    leave_one_out: bool

    @cached_property
    def splits(self) -> npt.NDArray[np.int8]:
        """[N] position in `SPLITS` of the split of each row."""
        splits = np.array([SPLITS.index(shard.split) for shard in self.shards], np.int8)
        return np.repeat(splits, [shard.rows for shard in self.shards])

    @cached_property
    def _first_rows(self) -> Ints:
        return np.array([shard.first_row for shard in self.shards])

    def place(self, row: int) -> tuple[ShardFiles, int]:
        """Return the shard of a row, and its number within the shard."""
        shard = self.shards[int(np.searchsorted(self._first_rows, row, side="right")) - 1]
        return shard, row - shard.first_row

    def read(self, row: int) -> Images | None:
        """Return the image of a row, uint8 [H, W, C]; None if it cannot be read."""
        return self.files.read_image(*self.place(row))

    def have_other_class(self, rows: Ints, others: Ints) -> npt.NDArray[np.bool_]:
        """Return which pairs of rows have different, valid labels."""
        one, other = self.labels[rows], self.labels[others]
        return np.asarray((one != other) & (one >= 0) & (other >= 0))

    def are_compared(self, rows: Ints, others: Ints) -> npt.NDArray[np.bool_]:
        """Return which pairs of rows are not in one split, or in a gallery that is also query."""
        one, other = self.splits[rows], self.splits[others]
        return np.asarray((one != other) | (self.leave_one_out & (one == _GALLERY)))

    def report(self, level: Level, check: str, what: str, row: int, other_row: int) -> None:
        """Add a finding about two images; `what` is their relation, e.g. "the same image as"."""
        shard, number = self.place(row)
        other, other_number = self.place(other_row)
        name = self.files.image_file(other, other_number)
        in_store = f"{other.images} row {other_number}"
        message = f"{what} {in_store if name is None else f'{name} ({other.split})'}"
        if self.have_other_class(np.array([row]), np.array([other_row])).all():
            one, two = (self.classes[self.labels[n]] for n in (row, other_row))
            message += f", but of class {one!r} instead of {two!r}"
        self.files.add_image(level, check, message, shard, number, (other, other_number))


class ImageHashes:
    """Hashes of all images, to find equal images and, among image files, those that look alike.

    Args:
        distance: Largest number of different bits of the hashes of images that look alike; None:
            only equal images are found.
    """

    def __init__(self, distance: int | None) -> None:
        self._distance = distance
        self._digests, self._hashes, self._rows = bytearray(), array("Q"), array("q")

    def add(self, images: Images, rows: Ints) -> None:
        """Add images, uint8 [N, H, W, C], of the rows [N]."""
        self._digests += b"".join(digest_images(images))
        self._rows.extend(rows.tolist())
        if self._distance is not None:
            self._hashes.frombytes(hash_images(images).tobytes())

    def report(self, stored: StoredRows, leak: Level) -> None:
        """Report equal images at the level `leak`, and images that look alike as warnings.

        Images that look alike are reported if they have different classes, are in different
        splits, or are in a gallery that is also query.
        """
        rows = np.frombuffer(self._rows, np.int64)
        copies = _report_equal_images(stored, equal_groups(self._digests, rows), leak)
        if self._distance is None:
            return
        is_first = ~np.isin(rows, copies)
        hashes = np.frombuffer(self._hashes, np.uint64)[is_first]
        checks = {
            "near-duplicate of another class": stored.have_other_class,
            "near-duplicate leak": lambda one, other: (
                stored.are_compared(one, other) & ~stored.have_other_class(one, other)
            ),
        }
        for check, is_relevant in checks.items():
            for one, other in similar_images(
                hashes, rows[is_first], self._distance, is_relevant, stored.read
            ):
                stored.report("warning", check, "looks like", other, one)


def _report_equal_images(rows: StoredRows, groups: Iterator[Ints], leak: Level) -> Ints:
    """Report equal images: within a split as warnings, in different splits at the level `leak`.

    A group of equal images gives one finding for each pair of splits. With leave-one-out, equal
    images within gallery are also leaks: a query would find its own image in another gallery row.

    Args:
        rows: The rows.
        groups: Rows of equal images.
        leak: Level of equal images in different splits.

    Returns:
        The rows of all groups, without the first of each.
    """
    copies: list[Ints] = [np.empty(0, np.int64)]
    for group in groups:
        copies.append(group[1:])
        first_of_split = []
        for split in np.unique(rows.splits[group]):
            first, *others = group[rows.splits[group] == split].tolist()
            first_of_split.append(first)
            for row in others:
                if rows.leave_one_out and split == _GALLERY:
                    rows.report(leak, "leak", "the same image as", row, first)
                else:
                    is_conflict = rows.have_other_class(np.array([row]), np.array([first])).all()
                    check = "label conflict" if is_conflict else "duplicate"
                    rows.report("warning", check, "the same image as", row, first)
        for row, other_row in itertools.combinations(sorted(first_of_split), 2):
            rows.report(leak, "leak", "the same image as", other_row, row)
    return np.concatenate(copies)

"""The image files of a source, with their classes, splits and groups.

C: classes, N: image files.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.decoding import FileBlock, ImageBlock, image_name
from arcloop.data.store.shards import NO_GROUP
from arcloop.errors import DataError, list_some
from arcloop.runtime.regions import COLUMNS, Region

Ints = npt.NDArray[np.int64]


class ImageList(ABC):
    """List of encoded images, which are separate files or records of one file.

    Attributes:
        root: Folder that relative paths start from.
    """

    root: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def relative(self, number: int) -> bytes:
        """Return the name that identifies an image in a store, e.g. its path without the root."""

    @abstractmethod
    def path(self, number: int) -> str:
        """Return the path of an image with the root, or a description of its location."""

    def name(self, number: int) -> str:
        """Return the path of an image, and its region if it is a part of a file, for messages."""
        return self.path(number)

    @abstractmethod
    def select(self, numbers: Ints) -> ImageList:
        """Return a list of some of the images."""

    @abstractmethod
    def block(self, numbers: Sequence[int], **fields: Any) -> ImageBlock:
        """Return images as a block to decode; `fields` are those of `ImageBlock`."""


class ByteList:
    """List of byte strings in one buffer. The memory for one is its length plus 8 bytes."""

    def __init__(self) -> None:
        self._buffer, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        start = self._ends[number - 1] if number else 0
        return bytes(self._buffer[start : self._ends[number]])

    def append(self, value: bytes) -> None:
        """Add a byte string."""
        self._buffer += value
        self._ends.append(len(self._buffer))


class FileList(ImageList):
    """List of image files, or of regions of image files.

    Args:
        root: Folder that relative paths start from.

    Attributes:
        lines: Line of each file in a list, if there are regions.
        regions: Arguments of `Region.from_values` for each file, joined; empty if there are none.
        metadata: JSON object of each file, which the store keeps; empty if there is none.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._paths, self.metadata = ByteList(), ByteList()
        self.lines, self.regions = array("q"), array("f")

    def __len__(self) -> int:
        return len(self._paths)

    def append(
        self, path: str, region: Sequence[float] = (), line: int = 0, metadata: bytes | None = None
    ) -> None:
        """Add a path, relative to the root or absolute.

        `region` are the values of `COLUMNS`. Give a region for all files or for none, and likewise
        metadata.
        """
        self._paths.append(os.fsencode(path))
        if region:
            self.lines.append(line)
            self.regions.extend(region)
        if metadata is not None:
            self.metadata.append(metadata)

    def region(self, number: int) -> Region | None:
        """Return the part of a file that is an image; None for all of it."""
        size = len(COLUMNS)
        values = self.regions[number * size : (number + 1) * size]
        return Region.from_values(values) if values else None

    def relative(self, number: int) -> bytes:
        return image_name(self._paths[number], self.region(number))

    def path(self, number: int) -> str:
        return os.path.join(self.root, os.fsdecode(self._paths[number]))  # noqa: PTH118 - speed

    def name(self, number: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.relative(number)))  # noqa: PTH118 - speed

    def block(self, numbers: Sequence[int], **fields: Any) -> ImageBlock:
        return FileBlock(
            root=self.root,
            paths=[self._paths[number] for number in numbers],
            regions=[self.region(number) for number in numbers] if self.regions else None,
            lines=[self.lines[number] for number in numbers] if self.lines else None,
            metadata=[self.metadata[number] for number in numbers] if len(self.metadata) else None,
            **fields,
        )

    def select(self, numbers: Ints) -> FileList:
        chosen, size = FileList(Path(self.root)), len(COLUMNS)
        for number in numbers.tolist():
            chosen.append(
                os.fsdecode(self._paths[number]),
                self.regions[number * size : (number + 1) * size],
                self.lines[number] if self.lines else 0,
                self.metadata[number] if len(self.metadata) else None,
            )
        return chosen


@dataclass(frozen=True)
class Groups:
    """The group of each image file, for example its video, session or burst.

    Attributes:
        numbers: [N] index into `names`, or `NO_GROUP`.
        names: Names of the groups, sorted.
    """

    numbers: Ints
    names: list[str]

    @classmethod
    def from_order_of_names(cls, numbers: array[int], number_of: Mapping[str, int]) -> Self:
        """Number groups by their sorted names.

        Args:
            numbers: [N] group of each file; 0: no group.
            number_of: Name -> number in `numbers`, counted from 0; the empty name is 0.

        >>> Groups.from_order_of_names(array("q", [1, 0, 2, 1]), {"": 0, "walk": 1, "run": 2})
        Groups(numbers=array([ 1, -1,  0,  1]), names=['run', 'walk'])
        """
        names = sorted(number_of)
        position = np.empty(len(names), np.int64)
        position[[number_of[name] for name in names]] = np.arange(len(names)) - 1  # "" is first
        return cls(position[np.frombuffer(numbers, np.int64)], names[1:])

    def renumber(self, stored: Sequence[str]) -> Self:
        """Return the groups with the numbers of a store; groups that are not in it follow."""
        known = set(stored)
        names = [*stored, *(name for name in self.names if name not in known)]
        number_of = {name: number for number, name in enumerate(names)}
        numbers = np.array([*map(number_of.__getitem__, self.names), NO_GROUP])
        return type(self)(numbers[self.numbers], names)


@dataclass(frozen=True)
class PictureTable:
    """The image files of a source.

    Attributes:
        files: The image files.
        labels: [N] class of each file, an index into `classes`.
        classes: Class names.
        given: Split -> numbers of its files, if the source defines the splits.
        groups: The group of each file, if the source has groups.
    """

    files: ImageList
    labels: Ints
    classes: Sequence[str]
    given: Mapping[str, Ints] | None
    groups: Groups | None

    def select(self, kept: Ints) -> Self:
        """Return a table of the files with these numbers, which are in ascending order."""
        given = self.given and {
            split: np.flatnonzero(np.isin(kept, numbers)) for split, numbers in self.given.items()
        }
        return replace(
            self,
            files=self.files.select(kept),
            labels=self.labels[kept],
            given=given,
            groups=self.groups and replace(self.groups, numbers=self.groups.numbers[kept]),
        )

    def drop_small_classes(self, min_images: int, where: object) -> tuple[Self, list[str]]:
        """Leave out classes with fewer images, except those with images in query only.

        Args:
            min_images: Minimum number of images of a class in all splits.
            where: Origin of the files, for error messages.

        Returns:
            The remaining table, and a description of the classes that were left out, if any.

        Raises:
            DataError: No class is left.
        """
        num_classes = len(self.classes)
        count_C = np.bincount(self.labels, minlength=num_classes)
        is_small_C = count_C < min_images
        if self.given is not None:
            in_query_C = np.bincount(self.labels[self.given["query"]], minlength=num_classes)
            is_small_C &= (in_query_C < count_C) | (count_C == 0)
        if not is_small_C.any():
            return self, []
        if is_small_C.all():
            raise DataError(
                f"every class has fewer than data.min_images={min_images} images",
                where=where,
                remedy="lower data.min_images",
            )
        small_c, large_c = np.flatnonzero(is_small_C).tolist(), np.flatnonzero(~is_small_C).tolist()
        small = list_some([f"{self.classes[c]!r} ({count_C[c]})" for c in small_c])
        table = self.select(np.flatnonzero(~is_small_C[self.labels]))
        table = replace(
            table,
            labels=(np.cumsum(~is_small_C) - 1)[table.labels],
            classes=[self.classes[c] for c in large_c],
        )
        description = (
            f"{len(small_c)} classes with {count_C[small_c].sum()} images, because each has"
        )
        return table, [f"{description} fewer than data.min_images={min_images}: {small}"]

"""Pictures found by a source, decoded on all cores straight into the store."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.base import SPLITS, Listing
from arcloop.data.sources.png_sheet import PngSheet
from arcloop.data.sources.workers import Workers
from arcloop.data.splits.growth import Growth
from arcloop.data.store.shards import SplitWriter, rows_per_block
from arcloop.data.store.source_files import (
    Difference,
    Held,
    Origins,
    compare,
    file_versions,
    make_origins,
)
from arcloop.errors import DataError
from arcloop.runtime.images import ImageError, decode

Ints = npt.NDArray[np.int64]

SLICE_ROWS = 256
MANY = 4096
"""Pictures that are worth starting processes for before all are counted."""
_BLOCK_NAMES = 1 << 16
_READ_BYTES = 1 << 20
_NAMED = 10


class Pictures(Protocol):
    """Files of pictures, numbered."""

    def paths(self, numbers: Ints) -> list[str]:
        """Return where these are."""

    def names(self, numbers: Ints) -> list[bytes]:
        """Return their paths from the root of the source, by which a store knows them."""


@dataclass
class PictureListing(Listing):
    """Pictures, and which of them each split consists of.

    Attributes:
        pictures: The files.
        labels: [N] class of each.
        order: Split -> numbers of its pictures.
        skip_bad: Leave out pictures that cannot be read.
        growth: How pictures that are appended to a store are split; None: as `order` says.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    pictures: Pictures
    labels: npt.NDArray[np.integer]
    order: Mapping[str, Ints]
    skip_bad: bool
    growth: Growth | None
    num_train_classes: int
    leave_one_out: bool

    def __post_init__(self) -> None:
        self.rows = {split: len(pictures) for split, pictures in self.order.items()}
        self._versions = {split: np.zeros((rows, 2), np.int64) for split, rows in self.rows.items()}

    def fill(
        self, writers: Mapping[str, SplitWriter], advance: Callable[[int], None], workers: Workers
    ) -> Mapping[str, Mapping[int, str]]:
        size = min(SLICE_ROWS, rows_per_block(self.image_shape))
        workers.start(sum(math.ceil(rows / size) for rows in self.rows.values()))
        bad: list[BadPicture] = []
        for done in workers.run(decode_slice, self._slices(writers, size)):
            bad += done.bad
            rows = len(done.versions)
            self._versions[done.split][done.start : done.start + rows] = done.versions
            advance(rows)
        bad.sort(key=lambda picture: picture.path)
        if bad and not self.skip_bad:
            listed = "".join(f"\n    {p.path}: {p.reason}" for p in bad[:_NAMED])
            more = f"\n    and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise DataError(
                f"{len(bad)} of {sum(self.rows.values())} images cannot be read:{listed}{more}",
                remedy="mend or remove them, or pass data.on_bad_image=skip to leave them out",
            )
        dropped: dict[str, dict[int, str]] = defaultdict(dict)
        for picture in bad:
            dropped[picture.split][picture.row] = picture.path
        return dropped

    def origins(self, split: str, rows: Ints) -> Origins:
        return make_origins(
            self.pictures.names(self.order[split][rows]), self._versions[split][rows]
        )

    def difference(self, held: Held) -> Difference:
        everything = np.arange(len(self.labels))
        blocks = np.array_split(everything, math.ceil(len(everything) / _BLOCK_NAMES))
        position = {name: label for label, name in enumerate(held.classes)}
        label_there = np.array([position.get(name, -1) for name in self.classes], np.int64)
        split = None
        if self.growth is None:
            split = np.full(len(self.labels), -1, np.int64)
            for name, pictures in self.order.items():
                split[pictures] = SPLITS.index(name)
        return compare(
            held.rows,
            np.concatenate([np.array(self.pictures.names(block), bytes) for block in blocks]),
            lambda numbers: file_versions(self.pictures.paths(numbers)),
            label_there[self.labels],
            split,
        )

    def beyond(self, new: npt.NDArray[np.bool_], held: Held) -> PictureListing:
        known = set(held.classes)
        classes = [*held.classes, *(name for name in self.classes if name not in known)]
        position = {name: label for label, name in enumerate(classes)}
        labels = np.array([position[name] for name in self.classes], np.int64)[self.labels]
        numbers = np.flatnonzero(new)
        if self.growth is None:
            order = {split: pictures[new[pictures]] for split, pictures in self.order.items()}
        else:
            drawn = self.growth.assign(labels[numbers], held, classes)
            order = {split: numbers[drawn == SPLITS.index(split)] for split in self.order}
        num_train_classes = held.train_classes_after(
            classes, labels[order["train"]], leave_one_out=self.leave_one_out
        )
        return replace(
            self, classes=classes, labels=labels, order=order, num_train_classes=num_train_classes
        )

    def _slices(self, writers: Mapping[str, SplitWriter], size: int) -> Iterator[Slice]:
        for split, pictures in self.order.items():
            for start in range(0, len(pictures), size):
                chosen = pictures[start : start + size]
                paths, labels = self.pictures.paths(chosen), self.labels[chosen].tolist()
                yield Slice(split, writers[split], start, paths, labels)


@dataclass(frozen=True)
class Slice:
    """Pictures to decode into rows from `start` on."""

    split: str
    writer: SplitWriter
    start: int
    paths: list[str]
    labels: list[int]


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be read, the row it would have had, and why."""

    split: str
    row: int
    path: str
    reason: str


@dataclass(frozen=True)
class SliceDone:
    """What became of a slice.

    Attributes:
        split: Its split.
        start: Its first row.
        versions: [rows, 2] size and time of change of each file when it was read.
        bad: Those that could not be.
    """

    split: str
    start: int
    versions: Ints
    bad: list[BadPicture]


def decode_slice(task: Slice) -> SliceDone:
    """Decode pictures and write them to their rows; rows of bad ones stay black."""
    height, width, channels = task.writer.image_shape
    images = np.zeros((len(task.paths), height, width, channels), np.uint8)
    versions = np.zeros((len(task.paths), 2), np.int64)
    bad = []
    sheet, on_sheet = PngSheet(height, width, channels), []
    for number, path in enumerate(task.paths):
        try:
            content, size, changed = _read(path)
            versions[number] = size, changed
            if sheet.add(content):
                on_sheet.append(number)
            else:
                images[number] = decode(content, height=height, width=width, channels=channels)
        except (ImageError, OSError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            bad.append(BadPicture(task.split, task.start + number, path, str(reason)))
    images[on_sheet] = sheet.decode()
    task.writer.write(task.start, images, np.array(task.labels, np.int64))
    return SliceDone(task.split, task.start, versions, bad)


def _read(path: str) -> tuple[bytes, int, int]:
    """Return a file's content, size and time of change; for a small one in half of open's time."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stat = os.fstat(file)
        parts = [os.read(file, stat.st_size + 1)]
        while parts[-1] and sum(map(len, parts)) != stat.st_size:  # it changes, or is no plain file
            parts.append(os.read(file, _READ_BYTES))
    finally:
        os.close(file)
    return b"".join(parts), stat.st_size, stat.st_mtime_ns

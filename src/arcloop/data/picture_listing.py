"""Pictures found in folders, decoded on all cores straight into the store."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.data.origins import Difference, Origins, compare, make_origins
from arcloop.data.shards import SplitWriter, rows_per_block
from arcloop.data.shares import Shares
from arcloop.data.source import SPLITS, Listing
from arcloop.data.workers import run_tasks
from arcloop.errors import DataError
from arcloop.images import ImageError, decode

Ints = npt.NDArray[np.int64]

_SLICE_ROWS = 128
_NAMED = 10


@dataclass(frozen=True)
class ClassFolder:
    """The pictures in one folder, all of one class; names as bytes, a fraction of a list of str."""

    path: Path
    label: int
    names: npt.NDArray[np.bytes_]


@dataclass
class PictureListing(Listing):
    """Pictures by folder, and which of them, counted over all folders, each split consists of.

    Attributes:
        root: Folder to which the pictures' recorded paths are relative.
        folders: Where they are.
        order: Split -> pictures.
        shares: How pictures that are appended are split; None: as `order` says.
        skip_bad: Leave out what cannot be read.
    """

    root: Path
    classes: list[str]
    image_shape: tuple[int, int, int]
    folders: Sequence[ClassFolder]
    order: Mapping[str, Ints]
    shares: Shares | None
    skip_bad: bool

    def __post_init__(self) -> None:
        self.rows = {split: len(pictures) for split, pictures in self.order.items()}
        self._counts = [len(folder.names) for folder in self.folders]
        self._ends = np.cumsum(self._counts)
        self._versions = {split: np.zeros((rows, 2), np.int64) for split, rows in self.rows.items()}

    def fill(
        self, writers: Mapping[str, SplitWriter], advance: Callable[[int], None], workers: int
    ) -> Mapping[str, Mapping[int, str]]:
        size = min(_SLICE_ROWS, rows_per_block(self.image_shape))
        slices = sum(math.ceil(rows / size) for rows in self.rows.values())
        bad: list[BadPicture] = []
        for done in run_tasks(decode_slice, self._slices(writers, size), min(workers, slices)):
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
        pictures = self.order[split][rows]
        paths = [
            prefix + name
            for (folder, name) in self._located(pictures)
            for prefix in [self._prefix(folder)]
        ]
        return make_origins(paths, self._versions[split][rows])

    def difference(self, held: Origins) -> Difference:
        paths = [
            np.char.add(self._prefix(folder), folder.names)
            for folder in self.folders
            if len(folder.names)
        ]

        def versions(pictures: Ints) -> Ints:
            stats = [_stat(folder.path, name) for folder, name in self._located(pictures)]
            return np.array(stats, np.int64).reshape(-1, 2)

        return compare(held, np.concatenate(paths), versions)

    def beyond(self, new: npt.NDArray[np.bool_], classes: list[str], held: Ints) -> PictureListing:
        added = [name for name in self.classes if name not in set(classes)]
        joined = [*classes, *added]
        position = {name: label for label, name in enumerate(joined)}
        folders = [replace(f, label=position[self.classes[f.label]]) for f in self.folders]
        if self.shares is None:
            order = {split: pictures[new[pictures]] for split, pictures in self.order.items()}
        else:
            labels = np.repeat([folder.label for folder in folders], self._counts)[new]
            held = np.concatenate([held, np.zeros((len(added), len(SPLITS)), np.int64)])
            drawn = self.shares.assign(labels, held)
            numbers = np.flatnonzero(new)
            order = {split: numbers[drawn == number] for number, split in enumerate(SPLITS)}
        return replace(self, classes=joined, folders=folders, order=order)

    def _prefix(self, folder: ClassFolder) -> bytes:
        return os.fsencode(folder.path.relative_to(self.root)) + b"/"

    def _located(self, pictures: Ints) -> Iterator[tuple[ClassFolder, bytes]]:
        """Yield folder and name of each picture."""
        folders = np.searchsorted(self._ends, pictures, side="right")
        for picture, number in zip(pictures, folders, strict=True):
            folder = self.folders[number]
            yield folder, folder.names[picture - self._ends[number]]  # counted from its end

    def _slices(self, writers: Mapping[str, SplitWriter], size: int) -> Iterator[Slice]:
        for split, pictures in self.order.items():
            for start in range(0, len(pictures), size):
                located = list(self._located(pictures[start : start + size]))
                paths = [str(folder.path / os.fsdecode(name)) for folder, name in located]
                labels = [folder.label for folder, _ in located]
                yield Slice(split, writers[split], start, paths, labels)


def _stat(folder: Path, name: bytes) -> tuple[int, int]:
    try:
        stat = os.stat(os.path.join(os.fsencode(folder), name))  # noqa: PTH116, PTH118 - bytes
    except FileNotFoundError:  # a link that leads nowhere any more
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


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
    for number, path in enumerate(task.paths):
        try:
            with open(path, "rb") as file:
                stat = os.fstat(file.fileno())
                content = file.read()
            versions[number] = stat.st_size, stat.st_mtime_ns
            images[number] = decode(content, height=height, width=width, channels=channels)
        except (ImageError, OSError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            bad.append(BadPicture(task.split, task.start + number, path, str(reason)))
    task.writer.write(task.start, images, np.array(task.labels, np.int64))
    return SliceDone(task.split, task.start, versions, bad)

"""Pictures found by a source, decoded on all cores straight into the store."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arcloop.data.shards import SplitWriter, rows_per_block
from arcloop.data.source import Listing
from arcloop.data.workers import run_tasks
from arcloop.errors import DataError
from arcloop.images import ImageError, decode

Ints = npt.NDArray[np.int64]

_SLICE_ROWS = 128
_NAMED = 10


class Pictures(Protocol):
    """Files of pictures, numbered."""

    def paths(self, numbers: Ints) -> list[str]:
        """Return where these are."""


@dataclass
class PictureListing(Listing):
    """Pictures, and which of them each split consists of.

    Attributes:
        pictures: The files.
        labels: [N] class of each.
        order: Split -> numbers of its pictures.
        skip_bad: Leave out pictures that cannot be read.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    pictures: Pictures
    labels: npt.NDArray[np.integer]
    order: Mapping[str, Ints]
    skip_bad: bool
    num_train_classes: int
    leave_one_out: bool

    def __post_init__(self) -> None:
        self.rows = {split: len(pictures) for split, pictures in self.order.items()}

    def fill(
        self, writers: Mapping[str, SplitWriter], advance: Callable[[int], None], workers: int
    ) -> Mapping[str, Mapping[int, str]]:
        size = min(_SLICE_ROWS, rows_per_block(self.image_shape))
        slices = sum(math.ceil(rows / size) for rows in self.rows.values())
        bad: list[BadPicture] = []
        for done in run_tasks(decode_slice, self._slices(writers, size), min(workers, slices)):
            bad += done.bad
            advance(done.rows)
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
    """How many rows a slice had, and those that are bad."""

    rows: int
    bad: list[BadPicture]


def decode_slice(task: Slice) -> SliceDone:
    """Decode pictures and write them to their rows; rows of bad ones stay black."""
    height, width, channels = task.writer.image_shape
    images = np.zeros((len(task.paths), height, width, channels), np.uint8)
    bad = []
    for number, path in enumerate(task.paths):
        try:
            content = Path(path).read_bytes()
            images[number] = decode(content, height=height, width=width, channels=channels)
        except (ImageError, OSError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            bad.append(BadPicture(task.split, task.start + number, path, str(reason)))
    task.writer.write(task.start, images, np.array(task.labels, np.int64))
    return SliceDone(len(task.paths), bad)

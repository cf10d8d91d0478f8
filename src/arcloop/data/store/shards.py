"""The files of one split: `images-00000.npy` (uint8 N,H,W,C) beside `labels-00000.npy` (int64).

Where images are kept encoded, `jpeg-00000.npy` (uint8, all bytes in one row) and
`offsets-00000.npy` (int64 N+1, where each image starts in them) stand for `images-00000.npy`.
"""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_BLOCK_BYTES = 1 << 20


def images_file(shard: int) -> str:
    """Return the name of a shard's images.

    >>> images_file(3)
    'images-00003.npy'
    """
    return f"images-{shard:05d}.npy"


def labels_file(shard: int) -> str:
    """Return the name of a shard's labels."""
    return f"labels-{shard:05d}.npy"


def jpeg_file(shard: int) -> str:
    """Return the name of a shard's encoded images."""
    return f"jpeg-{shard:05d}.npy"


def offsets_file(shard: int) -> str:
    """Return the name of the file that says where each encoded image starts."""
    return f"offsets-{shard:05d}.npy"


def npy_header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """Return what a .npy of this shape and type starts with.

    >>> npy_header((2, 3), np.uint8)[10:].decode().strip()
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }"
    """
    descr = npy.dtype_to_descr(np.dtype(dtype))
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def rows_per_block(image_shape: Sequence[int]) -> int:
    """Return how many images (H, W, C) to hold at a time: a MiB of them, at least one.

    >>> rows_per_block((28, 28, 1))
    1337
    """
    return max(1, _BLOCK_BYTES // math.prod(image_shape))


def pieces(
    start: int, stop: int, ends: npt.NDArray[np.int64]
) -> Iterator[tuple[int, slice, slice]]:
    """Cut rows `start` to `stop` of a split at the shards' borders.

    Args:
        start: First row.
        stop: Row after the last.
        ends: [shards] row after the last of each shard.

    Yields:
        Shard, rows within the shard, and where they are among the rows asked for.

    Example:
        >>> list(pieces(3, 6, ends=np.array([5, 10])))
        [(0, slice(3, 5, None), slice(0, 2, None)), (1, slice(0, 1, None), slice(2, 3, None))]
    """
    shard, done = int(ends.searchsorted(start, side="right")), start
    while done < stop:
        first = int(ends[shard - 1]) if shard else 0
        high = min(stop, int(ends[shard]))
        yield shard, slice(done - first, high - first), slice(done - start, high - start)
        shard, done = shard + 1, high


@dataclass(frozen=True)
class SplitWriter:
    """Writes the rows of one split, in any order and from any process.

    Attributes:
        folder: The split's folder.
        rows: Rows in all.
        shard_rows: Rows in every shard but the last.
        image_shape: (H, W, C).
        first_shard: Number of the first shard.
    """

    folder: Path
    rows: int
    shard_rows: int
    image_shape: tuple[int, int, int]
    first_shard: int = 0

    @property
    def shards(self) -> list[int]:
        """Rows of each shard."""
        whole, rest = divmod(self.rows, self.shard_rows)
        return [self.shard_rows] * whole + ([rest] if rest else [])

    @cached_property
    def numbered(self) -> list[tuple[int, int]]:
        """Number and rows of each shard."""
        return list(enumerate(self.shards, start=self.first_shard))

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.shards, dtype=np.int64)

    def allocate(self) -> Self:
        """Create the files in full size.

        Raises:
            OSError: No space is left.
        """
        self.folder.mkdir()
        for shard, rows in self.numbered:
            allocate(self.folder / images_file(shard), (rows, *self.image_shape), np.uint8)
            allocate(self.folder / labels_file(shard), (rows,), np.int64)
        return self

    def write(self, start: int, images: Images, labels: Labels) -> None:
        """Write rows from `start` on.

        Args:
            start: First row.
            images: [N, H, W, C].
            labels: [N].

        Raises:
            OSError: The disk refuses.
        """
        for number, rows, piece in pieces(start, start + len(labels), self._ends):
            shard = self.first_shard + number
            _write_rows(self.folder / images_file(shard), rows.start, images[piece])
            _write_rows(self.folder / labels_file(shard), rows.start, labels[piece])

    def finish(self, dropped: Sequence[int]) -> Self:
        """Bring the files into their last form when every row is written.

        Args:
            dropped: Rows to leave out.

        Returns:
            The writer of what is left.
        """
        return self._without(dropped) if dropped else self

    def _without(self, dropped: Sequence[int]) -> Self:
        keep = np.ones(self.rows, dtype=bool)
        keep[list(dropped)] = False
        folder = self.folder.with_name(self.folder.name + "-kept")
        kept = replace(self, folder=folder, rows=int(keep.sum())).allocate()
        done, block = 0, rows_per_block(self.image_shape)
        for start in range(0, self.rows, block):
            stop = min(start + block, self.rows)
            for number, rows, piece in pieces(start, stop, self._ends):
                shard = self.first_shard + number
                chosen = keep[start + piece.start : start + piece.stop]
                images = np.load(self.folder / images_file(shard), mmap_mode="r")[rows][chosen]
                labels = np.load(self.folder / labels_file(shard), mmap_mode="r")[rows][chosen]
                kept.write(done, images, labels)
                done += len(labels)
        shutil.rmtree(self.folder)
        folder.rename(self.folder)
        return replace(kept, folder=self.folder)


def _write_rows(path: Path, first: int, rows: npt.NDArray[Any]) -> None:
    """Write rows into a .npy that is there in full size."""
    with open(path, "r+b") as file:
        version = npy.read_magic(file)
        assert version == (1, 0)
        npy.read_array_header_1_0(file)
        file.seek(first * rows[:1].nbytes, os.SEEK_CUR)
        file.write(np.ascontiguousarray(rows).data)


def allocate(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Create a .npy of this shape with its blocks reserved on the disk.

    So a full disk is told before the work. And writing through a map into blocks that were never
    reserved would kill the process with SIGBUS.
    """
    header = npy_header(shape, dtype)
    with open(path, "xb") as file:
        file.write(header)
        file.flush()
        size = math.prod(shape) * np.dtype(dtype).itemsize
        os.posix_fallocate(file.fileno(), 0, len(header) + size)

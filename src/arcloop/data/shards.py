"""The files of one split: `images-00000.npy` (uint8 N,H,W,C) beside `labels-00000.npy` (int64)."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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


def pieces(start: int, stop: int, shard_rows: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut rows `start` to `stop` of a split at the shards' borders.

    Yields:
        Shard, rows within the shard, and where they are among the rows asked for.

    Example:
        >>> list(pieces(3, 6, shard_rows=5))
        [(0, slice(3, 5, None), slice(0, 2, None)), (1, slice(0, 1, None), slice(2, 3, None))]
    """
    for shard in range(start // shard_rows, -(-stop // shard_rows)):
        first = shard * shard_rows
        low, high = max(start, first), min(stop, first + shard_rows)
        yield shard, slice(low - first, high - first), slice(low - start, high - start)


@dataclass(frozen=True)
class SplitWriter:
    """Writes the rows of one split, in any order and from any process, through memory maps.

    A map is closed after each write: pages of an open one count as memory of this process.

    Attributes:
        folder: The split's folder.
        rows: Rows in all.
        shard_rows: Rows in every shard but the last.
        image_shape: (H, W, C).
    """

    folder: Path
    rows: int
    shard_rows: int
    image_shape: tuple[int, int, int]

    @property
    def shards(self) -> list[int]:
        """Rows of each shard."""
        whole, rest = divmod(self.rows, self.shard_rows)
        return [self.shard_rows] * whole + ([rest] if rest else [])

    def allocate(self) -> SplitWriter:
        """Create the files in full size.

        Raises:
            OSError: No space is left.
        """
        self.folder.mkdir()
        for shard, rows in enumerate(self.shards):
            _allocate(self.folder / images_file(shard), (rows, *self.image_shape), np.uint8)
            _allocate(self.folder / labels_file(shard), (rows,), np.int64)
        return self

    def write(self, start: int, images: Images, labels: Labels) -> None:
        """Write rows from `start` on.

        Args:
            start: First row.
            images: [N, H, W, C].
            labels: [N].
        """
        for shard, rows, piece in pieces(start, start + len(labels), self.shard_rows):
            npy.open_memmap(self.folder / images_file(shard), "r+")[rows] = images[piece]
            npy.open_memmap(self.folder / labels_file(shard), "r+")[rows] = labels[piece]

    def without(self, dropped: Sequence[int]) -> SplitWriter:
        """Write the split again, leaving out these rows; return the writer of what is left."""
        keep = np.ones(self.rows, dtype=bool)
        keep[list(dropped)] = False
        folder = self.folder.with_name(self.folder.name + "-kept")
        kept = replace(self, folder=folder, rows=int(keep.sum())).allocate()
        done, block = 0, rows_per_block(self.image_shape)
        for start in range(0, self.rows, block):
            stop = min(start + block, self.rows)
            for shard, rows, piece in pieces(start, stop, self.shard_rows):
                chosen = keep[start + piece.start : start + piece.stop]
                images = np.load(self.folder / images_file(shard), mmap_mode="r")[rows][chosen]
                labels = np.load(self.folder / labels_file(shard), mmap_mode="r")[rows][chosen]
                kept.write(done, images, labels)
                done += len(labels)
        shutil.rmtree(self.folder)
        folder.rename(self.folder)
        return replace(kept, folder=self.folder)


def _allocate(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Create a .npy of this shape with its blocks reserved on the disk.

    Writing through a map into blocks that were never reserved kills the process with SIGBUS when
    the disk is full; reserving them raises OSError here instead.
    """
    header = npy_header(shape, dtype)
    with open(path, "xb") as file:
        file.write(header)
        file.flush()
        size = math.prod(shape) * np.dtype(dtype).itemsize
        os.posix_fallocate(file.fileno(), 0, len(header) + size)

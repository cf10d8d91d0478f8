"""Files of one split and the writer of raw shards.

A raw shard has `images-00000.npy` (uint8 [N, H, W, C]) and `labels-00000.npy` (int64 [N]). A shard
of encoded images has `jpeg-00000.npy` (uint8, the bytes of all images) and `offsets-00000.npy`
(int64 [N + 1], the start of each image in these bytes) instead of `images-00000.npy`.
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


def images_file(number: int) -> str:
    """Return the name of the file with a shard's images.

    >>> images_file(3)
    'images-00003.npy'
    """
    return f"images-{number:05d}.npy"


def labels_file(number: int) -> str:
    """Return the name of the file with a shard's labels."""
    return f"labels-{number:05d}.npy"


def jpeg_file(number: int) -> str:
    """Return the name of the file with a shard's encoded images."""
    return f"jpeg-{number:05d}.npy"


def offsets_file(number: int) -> str:
    """Return the name of the file with the start of each encoded image."""
    return f"offsets-{number:05d}.npy"


def npy_header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """Return the header of a .npy file with an array of this shape and type.

    >>> npy_header((2, 3), np.uint8)[10:].decode().strip()
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }"
    """
    descr = npy.dtype_to_descr(np.dtype(dtype))
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def allocate_npy(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """Create a .npy file of zeros whose blocks are reserved on the disk.

    A full disk is then reported before the work starts. Writing through a memory map to a block
    that is not reserved would end the process with SIGBUS when the disk is full.

    Raises:
        OSError: The disk is full.
    """
    header = npy_header(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with open(path, "xb") as file:
        file.write(header)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, len(header) + size)
        else:  # macOS
            for start in range(0, size, _BLOCK_BYTES):
                file.write(bytes(min(_BLOCK_BYTES, size - start)))


def rows_per_block(image_shape: Sequence[int]) -> int:
    """Return how many images (H, W, C) fit into a block of 1 MiB, at least one.

    >>> rows_per_block((28, 28, 1))
    1337
    """
    return max(1, _BLOCK_BYTES // math.prod(image_shape))


def slice_shards(
    start: int, stop: int, ends: npt.NDArray[np.int64]
) -> Iterator[tuple[int, slice, slice]]:
    """Divide rows `start` to `stop` of a split among its shards.

    Args:
        start: First row.
        stop: Row after the last one.
        ends: [shards] row after the last one of each shard.

    Yields:
        Index of the shard, rows within the shard, and their positions in `start` to `stop`.

    Example:
        >>> list(slice_shards(3, 6, ends=np.array([5, 10])))
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
        folder: Folder of the split.
        rows: Total number of rows.
        shard_rows: Rows per shard; the last shard may be smaller.
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
        """Number of rows of each shard."""
        full, rest = divmod(self.rows, self.shard_rows)
        return [self.shard_rows] * full + ([rest] if rest else [])

    @property
    def numbered_shards(self) -> list[tuple[int, int]]:
        """Number of each shard and its number of rows."""
        return list(enumerate(self.shards, start=self.first_shard))

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.shards, dtype=np.int64)

    def allocate(self) -> Self:
        """Create the files with their full size.

        Raises:
            OSError: The disk is full.
        """
        self.folder.mkdir()
        for number, rows in self.numbered_shards:
            allocate_npy(self.folder / images_file(number), (rows, *self.image_shape), np.uint8)
            allocate_npy(self.folder / labels_file(number), (rows,), np.int64)
        return self

    def write(self, start: int, images: Images, labels: Labels) -> None:
        """Write consecutive rows.

        Args:
            start: First row.
            images: [N, H, W, C].
            labels: [N].

        Raises:
            OSError: The disk cannot be written to.
        """
        for shard, rows, part in slice_shards(start, start + len(labels), self._ends):
            number = self.first_shard + shard
            _write_rows(self.folder / images_file(number), rows.start, images[part])
            _write_rows(self.folder / labels_file(number), rows.start, labels[part])

    def finish(self, dropped: Sequence[int]) -> Self:
        """Complete the files after all rows are written.

        Args:
            dropped: Rows to remove.

        Returns:
            The writer of the remaining rows.
        """
        return self._copy_without(dropped) if dropped else self

    def _copy_without(self, dropped: Sequence[int]) -> Self:
        keep = np.ones(self.rows, dtype=bool)
        keep[list(dropped)] = False
        folder = self.folder.with_name(self.folder.name + "-kept")
        kept = replace(self, folder=folder, rows=int(keep.sum())).allocate()
        done, block = 0, rows_per_block(self.image_shape)
        for start in range(0, self.rows, block):
            stop = min(start + block, self.rows)
            for shard, rows, part in slice_shards(start, stop, self._ends):
                number = self.first_shard + shard
                chosen = keep[start + part.start : start + part.stop]
                images = np.load(self.folder / images_file(number), mmap_mode="r")[rows][chosen]
                labels = np.load(self.folder / labels_file(number), mmap_mode="r")[rows][chosen]
                kept.write(done, images, labels)
                done += len(labels)
        shutil.rmtree(self.folder)
        folder.rename(self.folder)
        return replace(kept, folder=self.folder)


def _write_rows(path: Path, first: int, rows: npt.NDArray[Any]) -> None:
    """Write rows into an existing .npy file, starting at row `first`."""
    with open(path, "r+b") as file:
        version = npy.read_magic(file)
        assert version == (1, 0)
        npy.read_array_header_1_0(file)
        file.seek(first * rows[:1].nbytes, os.SEEK_CUR)
        file.write(np.ascontiguousarray(rows).data)

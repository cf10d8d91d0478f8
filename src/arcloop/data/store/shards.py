"""The files of one split, and the class that writes them.

A shard consists of `images-00000.npy` (uint8 [N, H, W, C]) and `labels-00000.npy` (int64 [N]). A
shard of encoded images has `jpeg-00000.npy` (uint8, the bytes of all images) and
`offsets-00000.npy` (int64 [N + 1], the start of each image in these bytes, and the end of the last)
instead of `images-00000.npy`. If the source has one file per image, `origins-00000.npy` is the
`FileTable` of the shard. If the source has groups, `groups-00000.npy` (int64 [N]) is the group of
each image, or `NO_GROUP`. If the source has metadata, `metadata-00000.jsonl` has one JSON object
for each image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Kind = Literal["images", "labels", "jpeg", "offsets", "origins", "groups", "metadata"]
FileTable = npt.NDArray[Any]
"""[N] records: path, relative to the root of the source; size in bytes; changed, the modification
time in ns; hash of the content."""
NO_GROUP = -1
"""Group of an image without a group: it is a group of its own."""

_BLOCK_BYTES = 1 << 20


def shard_file(kind: Kind, shard: int) -> str:
    """Return the name of one of the files of a shard.

    >>> shard_file("images", 3)
    'images-00003.npy'
    """
    return f"{kind}-{shard:05d}.{'jsonl' if kind == 'metadata' else 'npy'}"


def npy_header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """Return the header of a .npy file with an array of this shape and type.

    Headers of arrays that differ only in their first dimension have the same length.

    >>> npy_header((2, 3), np.uint8)[10:].decode().strip()
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }"
    """
    descr = npy.dtype_to_descr(np.dtype(dtype))
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def rows_per_block(image_shape: Sequence[int]) -> int:
    """Return how many images (H, W, C) fit into a block of 1 MiB, at least one.

    >>> rows_per_block((28, 28, 1))
    1337
    """
    return max(1, _BLOCK_BYTES // math.prod(image_shape))


class SplitWriter:
    """Writes the rows of one split in order, into shards of equal size.

    Args:
        folder: Folder of the split, which is created.
        shard_rows: Rows per shard; the last shard may be smaller.
        image_shape: (H, W, C).
        is_encoded: Whether the images are passed as encoded bytes.
        first_shard: Number of the first shard.

    Attributes:
        shards: Number of rows of each complete shard.
    """

    def __init__(
        self,
        folder: Path,
        shard_rows: int,
        image_shape: tuple[int, int, int],
        *,
        is_encoded: bool,
        first_shard: int = 0,
    ) -> None:
        folder.mkdir()
        self._folder, self._shard_rows, self._image_shape = folder, shard_rows, image_shape
        self._is_encoded, self._first_shard = is_encoded, first_shard
        self._kind: Kind = "jpeg" if is_encoded else "images"
        self.shards: list[int] = []
        self._start_shard()

    def _start_shard(self) -> None:
        self._rows = 0
        self._labels: list[Labels] = []
        self._sizes: list[int] = []  # bytes of each encoded image
        self._files: list[FileTable] = []
        self._groups: list[Labels] = []
        self._metadata: list[bytes] = []

    def append(
        self,
        images: Images | Sequence[bytes],
        labels: Labels,
        files: FileTable | None = None,
        groups: Labels | None = None,
        metadata: Sequence[bytes] | None = None,
    ) -> None:
        """Write the next rows.

        Args:
            images: uint8 [N, H, W, C], or N encoded images.
            labels: int64 [N].
            files: [N] the file that each image was read from.
            groups: int64 [N] group of each image, if the source has groups.
            metadata: [N] JSON object of each image in UTF-8, if the source has metadata.

        Raises:
            OSError: The disk cannot be written to.
        """
        start = 0
        while start < len(labels):
            part = slice(start, start + self._shard_rows - self._rows)
            with open(self._path(self._kind), "ab") as file:
                if self._rows == 0:
                    file.write(self._images_header())
                if self._is_encoded:
                    file.writelines(images[part])
                    self._sizes += map(len, images[part])
                else:
                    file.write(np.ascontiguousarray(images[part]).data)
            self._labels.append(labels[part])
            if files is not None:
                self._files.append(files[part])
            if groups is not None:
                self._groups.append(groups[part])
            self._metadata += metadata[part] if metadata is not None else ()
            self._rows += len(labels[part])
            start += len(labels[part])
            if self._rows == self._shard_rows:
                self.close()

    def close(self) -> None:
        """Complete the files of the last shard."""
        if self._rows == 0:
            return
        with open(self._path(self._kind), "r+b") as file:
            file.write(self._images_header())  # with the number of rows
        np.save(self._path("labels"), np.concatenate(self._labels, dtype=np.int64))
        if self._is_encoded:
            np.save(self._path("offsets"), np.cumsum([0, *self._sizes], dtype=np.int64))
        if self._files:
            np.save(self._path("origins"), np.concatenate(self._files))
        if self._groups:
            np.save(self._path("groups"), np.concatenate(self._groups, dtype=np.int64))
        if self._metadata:
            self._path("metadata").write_bytes(b"".join(line + b"\n" for line in self._metadata))
        self.shards.append(self._rows)
        self._start_shard()

    def _path(self, kind: Kind) -> Path:
        return self._folder / shard_file(kind, self._first_shard + len(self.shards))

    def _images_header(self) -> bytes:
        shape = (sum(self._sizes),) if self._is_encoded else (self._rows, *self._image_shape)
        return npy_header(shape, np.uint8)

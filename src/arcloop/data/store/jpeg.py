"""Writes and reads shards whose images are stored as JPEG.

The encoded size of an image is unknown before it is encoded. Each process therefore appends the
images that it encodes to a spool file of its own, and a table records the position of every row.
`JpegSplitWriter.finish` copies the images into the shards in the order of the rows.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from arcloop.data.store.reading import Rows, ShardReader, map_npy
from arcloop.data.store.shards import (
    Images,
    Labels,
    SplitWriter,
    allocate_npy,
    jpeg_file,
    labels_file,
    npy_header,
    offsets_file,
)
from arcloop.errors import ArtifactError, DataError
from arcloop.runtime.images import ImageError, decode, encode_jpeg

_ENTRY = np.dtype([("spool", "<i8"), ("start", "<i8"), ("size", "<i8"), ("label", "<i8")])
_MAX_SIDE = 65_500  # limit of libjpeg
_TABLE = "table.npy"


@dataclass(frozen=True, kw_only=True)
class JpegSplitWriter(SplitWriter):
    """Writes the rows of one split as JPEG, in any order and from any process.

    Attributes:
        quality: JPEG quality, 1 to 100.
    """

    quality: int

    @property
    def _spool(self) -> Path:
        return self.folder.with_name(self.folder.name + "-spool")

    def allocate(self) -> Self:
        """Create the folder of the split and the table of positions.

        Raises:
            DataError: JPEG does not support images of this size or number of channels.
            OSError: The disk is full.
        """
        height, width, channels = self.image_shape
        if channels not in (1, 3) or max(height, width) > _MAX_SIDE:
            raise DataError(
                f"images of {height} x {width} pixels and {channels} channels cannot be stored as"
                f" JPEG, which supports 1 or 3 channels and at most {_MAX_SIDE} pixels per side",
                remedy="pass data.encoding=raw",
            )
        self.folder.mkdir()
        self._spool.mkdir()
        allocate_npy(self._spool / _TABLE, (self.rows,), _ENTRY)
        return self

    def write(self, start: int, images: Images, labels: Labels) -> None:
        encoded = [encode_jpeg(image, self.quality) for image in images]
        entries = np.empty(len(encoded), _ENTRY)
        entries["spool"], entries["label"] = os.getpid(), labels
        entries["size"] = [len(content) for content in encoded]
        with open(self._spool / str(os.getpid()), "ab") as file:
            entries["start"] = file.tell() + np.cumsum(entries["size"]) - entries["size"]
            file.write(b"".join(encoded))
        npy.open_memmap(self._spool / _TABLE, "r+")[start : start + len(entries)] = entries

    def finish(self, dropped: Sequence[int]) -> Self:
        kept = np.delete(np.arange(self.rows), dropped)
        finished = replace(self, rows=len(kept))
        table = npy.open_memmap(self._spool / _TABLE, "r")
        with contextlib.ExitStack() as stack:
            spools = {
                int(path.name): stack.enter_context(open(path, "rb")).fileno()
                for path in self._spool.iterdir()
                if path.name.isdecimal()
            }
            first = 0
            for number, rows in finished.numbered_shards:
                self._write_shard(number, table[kept[first : first + rows]], spools)
                first += rows
        shutil.rmtree(self._spool)
        return finished

    def _write_shard(
        self, number: int, entries: npt.NDArray[np.void], spools: dict[int, int]
    ) -> None:
        offsets = np.concatenate([[0], np.cumsum(entries["size"])]).astype(np.int64)
        with open(self.folder / jpeg_file(number), "xb") as file:
            file.write(npy_header((int(offsets[-1]),), np.uint8))
            for spool, start, size, _ in entries.tolist():
                file.write(os.pread(spools[spool], size, start))
        np.save(self.folder / offsets_file(number), offsets)
        np.save(self.folder / labels_file(number), np.ascontiguousarray(entries["label"]))


class JpegShardReader(ShardReader):
    """Reads images that are stored as JPEG, and decodes them."""

    decodes = True

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self._file = folder / jpeg_file(number)
        self._bytes: npt.NDArray[np.uint8] = map_npy(self._file)
        self._offsets: npt.NDArray[np.int64] = map_npy(folder / offsets_file(number))

    def read_images(self, rows_B: Rows, out_BHWC: Images) -> None:
        """Decode the images of these rows.

        Raises:
            ArtifactError: An image cannot be decoded.
        """
        _, height, width, channels = out_BHWC.shape
        for position, row in enumerate(rows_B.tolist()):
            encoded = self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes()
            try:
                image = decode(encoded, height=height, width=width, channels=channels)
            except ImageError as cause:
                raise ArtifactError(
                    f"row {row} of {self._file.name}: {cause}",
                    where=self._file,
                    remedy="list all damaged rows with `arcloop validate`; delete the store and"
                    " prepare it again",
                ) from None
            out_BHWC[position] = image

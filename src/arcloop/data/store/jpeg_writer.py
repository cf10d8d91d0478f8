"""Writing a split whose images are kept as JPEG: encoded by whoever has a row, put in order last.

How long a row is, nobody knows before it is encoded. So each process appends what it encodes to a
spool of its own, and a table says where each row is; then the shards are put together in order.
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

from arcloop.data.store.shards import (
    Images,
    Labels,
    SplitWriter,
    allocate,
    jpeg_file,
    labels_file,
    npy_header,
    offsets_file,
)
from arcloop.errors import DataError
from arcloop.runtime.images import encode_jpeg

_ENTRY = np.dtype([("spool", "<i8"), ("start", "<i8"), ("size", "<i8"), ("label", "<i8")])
_MAX_SIDE = 65_500  # libjpeg's


@dataclass(frozen=True, kw_only=True)
class JpegSplitWriter(SplitWriter):
    """Writes the rows of one split as JPEG, in any order and from any process.

    Attributes:
        quality: 1 to 100.
    """

    quality: int

    @property
    def _spool(self) -> Path:
        return self.folder.with_name(self.folder.name + "-spool")

    def allocate(self) -> Self:
        """Create the folder, and the table of where each row is.

        Raises:
            DataError: JPEG cannot hold such images.
            OSError: No space is left.
        """
        height, width, channels = self.image_shape
        if channels not in (1, 3) or max(height, width) > _MAX_SIDE:
            raise DataError(
                f"images of {height} x {width} pixels and {channels} channels cannot be JPEG: it"
                f" takes 1 or 3 channels and {_MAX_SIDE} pixels a side",
                remedy="pass data.encoding=raw",
            )
        self.folder.mkdir()
        self._spool.mkdir()
        allocate(self._spool / "table.npy", (self.rows,), _ENTRY)
        return self

    def write(self, start: int, images: Images, labels: Labels) -> None:
        encoded = [encode_jpeg(image, self.quality) for image in images]
        entries = np.empty(len(encoded), _ENTRY)
        entries["spool"], entries["label"] = os.getpid(), labels
        entries["size"] = [len(one) for one in encoded]
        with open(self._spool / str(os.getpid()), "ab") as file:
            entries["start"] = file.tell() + np.cumsum(entries["size"]) - entries["size"]
            file.write(b"".join(encoded))
        npy.open_memmap(self._spool / "table.npy", "r+")[start : start + len(entries)] = entries

    def finish(self, dropped: Sequence[int]) -> Self:
        kept = np.delete(np.arange(self.rows), dropped)
        done = replace(self, rows=len(kept))
        table = npy.open_memmap(self._spool / "table.npy", "r")
        with contextlib.ExitStack() as stack:
            spools = {
                int(path.name): stack.enter_context(open(path, "rb")).fileno()
                for path in self._spool.iterdir()
                if path.name.isdecimal()
            }
            first = 0
            for shard, rows in done.numbered:
                self._write_shard(shard, table[kept[first : first + rows]], spools)
                first += rows
        shutil.rmtree(self._spool)
        return done

    def _write_shard(
        self, shard: int, entries: npt.NDArray[np.void], spools: dict[int, int]
    ) -> None:
        offsets = np.concatenate([[0], np.cumsum(entries["size"])]).astype(np.int64)
        with open(self.folder / jpeg_file(shard), "xb") as file:
            file.write(npy_header((int(offsets[-1]),), np.uint8))
            for spool, start, size, _ in entries.tolist():
                file.write(os.pread(spools[spool], size, start))
        np.save(self.folder / offsets_file(shard), offsets)
        np.save(self.folder / labels_file(shard), np.ascontiguousarray(entries["label"]))

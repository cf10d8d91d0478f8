"""Finding equal images among any number, in memory that does not grow with it."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

_BUCKETS = 64
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


@contextlib.contextmanager
def row_hashes() -> Iterator[RowHashes]:
    """Provide an empty collection; its files are gone at the end."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="arcloop-")))
        paths = [folder / str(bucket) for bucket in range(_BUCKETS)]
        yield RowHashes([stack.enter_context(open(path, "w+b")) for path in paths])


class RowHashes:
    """Hashes of images, spilled to files by their last bits, so that equal ones share a file.

    A hash is 128 bits of BLAKE2b: that two different images have the same one need not be expected,
    so equal hashes mean equal images.

    Args:
        files: Empty files, open for writing and reading.
    """

    def __init__(self, files: Sequence[IO[bytes]]) -> None:
        self._files = files

    def add(self, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> None:
        """Note images.

        Args:
            images: [N, bytes of one image], C-contiguous.
            rows: [N] numbers by which `groups` names them.
        """
        digests = b"".join([hashlib.blake2b(i, digest_size=16).digest() for i in images])
        records = np.empty(len(images), _RECORD)
        pairs = np.frombuffer(digests, "<u8").reshape(-1, 2)
        records["high"], records["low"], records["row"] = pairs[:, 0], pairs[:, 1], rows
        bucket = pairs[:, 0] % len(self._files)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(len(self._files)), side="right")
        for file, part in zip(self._files, np.split(records[order], ends[:-1]), strict=True):
            file.write(part.tobytes())

    def groups(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the rows of each set of equal images, in the order they were added."""
        for file in self._files:
            file.seek(0)
            records = np.frombuffer(file.read(), _RECORD)
            order = np.lexsort((records["low"], records["high"]))
            records = records[order]
            new = (records["high"][1:] != records["high"][:-1]) | (
                records["low"][1:] != records["low"][:-1]
            )
            starts = np.flatnonzero(np.concatenate([[True], new]))[: len(records)]
            sizes = np.diff(starts, append=len(records))
            for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
                yield records["row"][start : start + size]

"""Finds equal images with a memory use that does not depend on the number of images."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt

_BUCKETS = 64
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


@contextlib.contextmanager
def open_image_hashes() -> Iterator[ImageHashes]:
    """Provide an empty collection of hashes; its temporary files are deleted at the end."""
    with contextlib.ExitStack() as stack:
        yield ImageHashes([stack.enter_context(tempfile.TemporaryFile()) for _ in range(_BUCKETS)])


class ImageHashes:
    """Hashes of images in temporary files; the hashes of equal images are in the same file.

    A hash is 128 bits of BLAKE2b. The probability that different images have equal hashes is
    negligible.

    Args:
        files: Empty files, opened for reading and writing.
    """

    def __init__(self, files: Sequence[IO[bytes]]) -> None:
        self._files = files

    def add(self, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> None:
        """Add images.

        Args:
            images: [N, bytes of one image], C-contiguous.
            rows: [N] numbers that identify the images in the result of `groups`.
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
        """Yield the rows of each group of two or more equal images, in the order of `add`."""
        for file in self._files:
            file.seek(0)
            records = np.frombuffer(file.read(), _RECORD)
            records = records[np.lexsort((records["low"], records["high"]))]
            hashes = records[["high", "low"]]
            is_first = np.concatenate([[True], hashes[1:] != hashes[:-1]])
            starts = np.flatnonzero(is_first)[: len(records)]
            sizes = np.diff(starts, append=len(records))
            for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
                yield records["row"][start : start + size]

"""Reading rows of a shard, however its images are kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arcloop.data.store.shards import Images, images_file, jpeg_file, offsets_file
from arcloop.errors import ArtifactError
from arcloop.runtime.cpus import available_cpus
from arcloop.runtime.images import ImageError, decode

Rows = slice | npt.NDArray[np.int64]

_MOST_THREADS = 8
_LEAST_ROWS = 8  # for a thread of its own


class ShardImages(Protocol):
    """The images of one shard, mapped; read from any number of threads."""

    def read(self, rows: Rows, out: Images) -> None:
        """Put rows [n] of the shard into `out`, uint8 [n, H, W, C]."""


class RawShard:
    """Images kept as pixels.

    Args:
        folder: The split's folder.
        shard: Number of the shard.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        # A plain array: a memmap's own Python code costs more than reading a few rows.
        self._images = np.load(folder / images_file(shard), mmap_mode="r").view(np.ndarray)

    def read(self, rows: Rows, out: Images) -> None:
        if isinstance(rows, slice):
            out[:] = self._images[rows]
        else:
            # "clip" lets take() write straight into the result; "raise" goes through a buffer.
            self._images.take(rows, 0, out, "clip")


class JpegShard:
    """Images kept as JPEG.

    Args:
        folder: The split's folder.
        shard: Number of the shard.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self._file = folder / jpeg_file(shard)
        self._bytes = np.load(self._file, mmap_mode="r").view(np.ndarray)
        self._offsets = np.load(folder / offsets_file(shard), mmap_mode="r").view(np.ndarray)

    def read(self, rows: Rows, out: Images) -> None:
        """Decode rows.

        Raises:
            ArtifactError: A row is no image.
        """
        _, height, width, channels = out.shape
        numbers = range(*rows.indices(rows.stop)) if isinstance(rows, slice) else rows.tolist()
        for number, row in enumerate(numbers):
            encoded = self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes()
            try:
                out[number] = decode(encoded, height=height, width=width, channels=channels)
            except ImageError as cause:
                raise ArtifactError(
                    f"row {row} of {self._file.name}: {cause}",
                    where=self._file,
                    remedy="`arcloop validate` tells what else is damaged; prepare the store anew",
                ) from None


def in_threads(read: Callable[[slice], None], rows: int) -> None:
    """Read rows of a batch in a few threads, each a part of them: decoding lets the others run.

    In a loader's worker, which is one of many, there is one thread. Threads end with the batch:
    a pool that is kept would be dead in a worker forked from this process, and waited for.
    """
    threads = 1 if multiprocessing.parent_process() else min(available_cpus(), _MOST_THREADS)
    threads = max(1, min(threads, rows // _LEAST_ROWS))
    if threads == 1:
        read(slice(0, rows))
        return
    cuts = [rows * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, map(slice, cuts[:-1], cuts[1:])))

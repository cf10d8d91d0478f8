"""Reads rows of a split through memory maps of its shards."""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from arcloop.data.store.shards import Images, Labels, images_file, labels_file

Rows = npt.NDArray[np.int64]

_MAX_THREADS = 8
_MIN_ROWS_PER_THREAD = 8


class ShardReader(ABC):
    """Reads rows of one shard; may be used from several threads at once.

    Args:
        folder: Folder of the split.
        number: Number of the shard.
    """

    decodes: bool
    """Whether reading decodes images; if so, several threads are used."""

    def __init__(self, folder: Path, number: int) -> None:
        self._labels: Labels = map_npy(folder / labels_file(number))

    @abstractmethod
    def read_images(self, rows_B: Rows, out_BHWC: Images) -> None:
        """Write the images of these rows of the shard into `out_BHWC`."""

    def read_labels(self, rows_B: Rows, out_B: Labels) -> None:
        """Write the labels of these rows of the shard into `out_B`."""
        self._labels.take(rows_B, 0, out_B, "clip")


class RawShardReader(ShardReader):
    """Reads images that are stored as pixels."""

    decodes = False

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self._images: Images = map_npy(folder / images_file(number))

    def read_images(self, rows_B: Rows, out_BHWC: Images) -> None:
        # With "clip", take() writes into `out` directly; with "raise" it copies through a buffer.
        self._images.take(rows_B, 0, out_BHWC, "clip")


class SplitReader:
    """Reads rows of one split; a shard is mapped when one of its rows is first read.

    Args:
        folder: Folder of the split.
        shards: Number of rows of each shard.
        image_shape: (H, W, C).
        shard_reader: Class that reads the shards.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[int],
        image_shape: tuple[int, int, int],
        shard_reader: type[ShardReader],
    ) -> None:
        self._folder, self._image_shape, self._shard_reader = folder, image_shape, shard_reader
        self._ends = np.cumsum(shards, dtype=np.int64)
        self._starts: list[int] = (self._ends - shards).tolist()
        self._opened: dict[int, ShardReader] = {}

    def read(self, rows_B: Rows) -> tuple[Images, Labels]:
        """Return uint8 images [B, H, W, C], C-contiguous, and int64 labels [B] of these rows."""
        order_B = None
        if len(self._starts) > 1 and (rows_B[1:] < rows_B[:-1]).any():
            order_B = np.argsort(rows_B, kind="stable")
            rows_B = rows_B[order_B]
        images_BHWC = np.empty((len(rows_B), *self._image_shape), np.uint8)
        labels_B = np.empty(len(rows_B), np.int64)
        if self._shard_reader.decodes:
            run_in_threads(
                lambda part: self._read_into(rows_B[part], images_BHWC[part], labels_B[part]),
                len(rows_B),
            )
        else:
            self._read_into(rows_B, images_BHWC, labels_B)
        if order_B is None:
            return images_BHWC, labels_B
        inverse_B = np.empty_like(order_B)
        inverse_B[order_B] = np.arange(len(order_B))
        return images_BHWC[inverse_B], labels_B[inverse_B]

    def _read_into(self, rows_B: Rows, images_BHWC: Images, labels_B: Labels) -> None:
        """Read rows, which are in ascending order if there are several shards."""
        if len(self._starts) == 1:
            shard = self._shard(0)
            shard.read_images(rows_B, images_BHWC)
            shard.read_labels(rows_B, labels_B)
            return
        start = 0
        for number, stop in enumerate(rows_B.searchsorted(self._ends).tolist()):
            if stop > start:
                shard, rows = self._shard(number), rows_B[start:stop] - self._starts[number]
                shard.read_images(rows, images_BHWC[start:stop])
                shard.read_labels(rows, labels_B[start:stop])
                start = stop

    def _shard(self, number: int) -> ShardReader:
        if number not in self._opened:
            self._opened[number] = self._shard_reader(self._folder, number)
        return self._opened[number]


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Return a read-only memory map of a .npy file.

    The result is a plain array because indexing an `np.memmap` runs additional Python code.
    """
    return np.load(path, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return]


def run_in_threads(read: Callable[[slice], None], rows: int) -> None:
    """Split a batch over a few threads; decoders release the GIL.

    A worker process of a loader uses one thread, because there are several such processes. The
    threads exit after the batch, because a forked worker could not use a persistent thread pool.

    Args:
        read: Reads one slice of the batch.
        rows: Number of rows in the batch.
    """
    threads = 1 if multiprocessing.parent_process() else min(joblib.cpu_count(), _MAX_THREADS)
    threads = max(1, min(threads, rows // _MIN_ROWS_PER_THREAD))
    if threads == 1:
        read(slice(0, rows))
        return
    cuts = [rows * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, map(slice, cuts[:-1], cuts[1:])))

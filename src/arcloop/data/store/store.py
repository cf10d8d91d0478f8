"""The store: uint8 images and int64 labels of four splits, in shards, read through memory maps.

Images that are kept as JPEG are decoded as they are read, so the rest sees pixels all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.data.store.shard_reading import JpegShard, RawShard, ShardImages, in_threads
from arcloop.data.store.shards import Images, Labels, labels_file, pieces

CLASSES = "classes.json"


class Store:
    """A whole, verified store.

    It can be sent to another process: maps are opened where they are first read.

    Args:
        artifact: Of kind `store`.

    Attributes:
        artifact: What it was opened from.
        classes: Class names; a label is a position in it.
        image_shape: (H, W, C).
        encoded: Whether images are decoded at every read.
        num_train_classes: Classes of train: those with the first labels.
        leave_one_out: Whether gallery is also the query split: row i of the one is row i of the
            other, in the same files.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.encoded = artifact.info.get("encoding", "raw") != "raw"
        height, width, channels = artifact.info["image_shape"]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self.classes: list[str] = json.loads((artifact.path / CLASSES).read_bytes())
        self.num_train_classes: int = artifact.info.get("train_classes", len(self.classes))
        self.leave_one_out: bool = artifact.info.get("leave_one_out", False)
        self._shards: dict[str, list[int]] = {
            split: facts["shards"] for split, facts in artifact.info["splits"].items()
        }
        self._opened: dict[str, _OpenSplit] = {}

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open and verify the store at `path`.

        Raises:
            ArtifactError: It is missing, half written, or changed since it was written.
        """
        return cls(artifacts.load(path, "store"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return sum(self._shards[split])

    def labels(self, split: str) -> Labels:
        """Return the labels of a whole split, int64 [N]."""
        labels = np.empty(self.rows(split), np.int64)
        ends = self._ends(split)
        for shard, _, target in pieces(0, len(labels), ends):
            labels[target] = np.load(self._folder(split) / labels_file(shard))
        return labels

    def batches(
        self, split: str, batch_rows: int, part: range | None = None
    ) -> Iterator[tuple[Images, Labels]]:
        """Stream a split in order, in the memory of a batch.

        Nothing stays mapped between batches: touched pages of a map count as this process's memory.

        Args:
            split: One of `SPLITS`.
            batch_rows: Rows in a batch; the last may be shorter.
            part: Which rows; None: all.

        Yields:
            uint8 [N, H, W, C] and int64 [N], of which the caller may do what it likes.
        """
        part = range(self.rows(split)) if part is None else part
        ends = self._ends(split)
        for start in range(part.start, part.stop, batch_rows):
            stop = min(start + batch_rows, part.stop)
            images = np.empty((stop - start, *self.image_shape), np.uint8)
            labels = np.empty(stop - start, np.int64)
            for shard, source, target in pieces(start, stop, ends):
                self._read(self._shard(split, shard), source, images[target])
                file = self._folder(split) / labels_file(shard)
                labels[target] = np.load(file, mmap_mode="r")[source]
            yield images, labels

    def gather(self, split: str, indices: npt.NDArray[np.int64]) -> tuple[Images, Labels]:
        """Read rows in any order, a copy per shard and none per row; ascending rows read fastest.

        The maps are kept for the next call.

        Args:
            split: One of `SPLITS`.
            indices: int64 [N] rows, 0 <= row < rows(split).

        Returns:
            uint8 [N, H, W, C], C-contiguous, and int64 [N], in the order asked for.

        Raises:
            IndexError: A row is out of range.
        """
        rows = self.rows(split)
        if len(indices) and not (indices.min() >= 0 and indices.max() < rows):
            raise IndexError(f"rows of {split} are 0 to {rows - 1}")
        opened = self._opened.get(split) or self._opened.setdefault(split, self._open(split))
        order = None
        if len(opened.images) > 1 and (indices[1:] < indices[:-1]).any():
            order = np.argsort(indices, kind="stable")
            indices = indices[order]
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int64)
        if self.encoded:
            in_threads(
                lambda part: opened.read(indices[part], images[part], labels[part]), len(indices)
            )
        else:
            opened.read(indices, images, labels)
        if order is None:
            return images, labels
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return images[back], labels[back]

    def _folder(self, split: str) -> Path:
        stored = "gallery" if split == "query" and self.leave_one_out else split
        return self.artifact.path / stored

    def _ends(self, split: str) -> npt.NDArray[np.int64]:
        return np.cumsum(self._shards[split], dtype=np.int64)

    def _shard(self, split: str, shard: int) -> ShardImages:
        return (JpegShard if self.encoded else RawShard)(self._folder(split), shard)

    def _read(self, shard: ShardImages, rows: slice, out: Images) -> None:
        if not self.encoded:
            shard.read(rows, out)
            return

        def read(part: slice) -> None:
            shard.read(slice(rows.start + part.start, rows.start + part.stop), out[part])

        in_threads(read, len(out))

    def _open(self, split: str) -> _OpenSplit:
        ends = self._ends(split)
        images = [self._shard(split, shard) for shard in range(len(ends))]
        labels = [
            np.load(self._folder(split) / labels_file(shard), mmap_mode="r").view(np.ndarray)
            for shard in range(len(ends))
        ]
        return _OpenSplit(images, labels, [0, *ends[:-1].tolist()], ends)


@dataclass(frozen=True)
class _OpenSplit:
    """What `gather` keeps open: mapped shards, and the row at which each starts and ends."""

    images: list[ShardImages]
    labels: list[Labels]
    starts: list[int]
    ends: npt.NDArray[np.int64]

    def read(self, rows: npt.NDArray[np.int64], images: Images, labels: Labels) -> None:
        """Put rows of the split, ascending where it has several shards, into the two."""
        if len(self.images) == 1:
            self.images[0].read(rows, images)
            self.labels[0].take(rows, 0, labels, "clip")
            return
        start = 0
        for shard, stop in enumerate(rows.searchsorted(self.ends).tolist()):
            if stop > start:
                within = rows[start:stop] - self.starts[shard]
                self.images[shard].read(within, images[start:stop])
                self.labels[shard].take(within, 0, labels[start:stop], "clip")
                start = stop

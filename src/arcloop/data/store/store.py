"""Opens a store and reads its images and labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.data.store.jpeg import JpegShardReader
from arcloop.data.store.reading import RawShardReader, Rows, SplitReader, map_npy
from arcloop.data.store.shards import Images, Labels, labels_file

CLASSES = "classes.json"


class Store:
    """A complete, verified store: uint8 images and int64 labels of four splits.

    A store can be pickled; each process opens the memory maps when it first reads from them.

    Args:
        artifact: Artifact of kind `store`.

    Attributes:
        artifact: The artifact that the store reads from.
        classes: Class names; a label is an index into them.
        image_shape: (H, W, C).
        num_train_classes: Number of classes in train. They have the first labels.
        leave_one_out: Whether gallery is also the query split. Row i of gallery and row i of query
            are then the same row of the same files.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        encoding = artifact.info.get("encoding", "raw")
        self._shard_reader = RawShardReader if encoding == "raw" else JpegShardReader
        height, width, channels = artifact.info["image_shape"]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self.classes: list[str] = json.loads((artifact.path / CLASSES).read_bytes())
        self.num_train_classes: int = artifact.info.get("train_classes", len(self.classes))
        self.leave_one_out: bool = artifact.info.get("leave_one_out", False)
        self._shards: dict[str, list[int]] = {
            split: facts["shards"] for split, facts in artifact.info["splits"].items()
        }
        self._readers: dict[str, SplitReader] = {}

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open and verify the store at `path`.

        Raises:
            ArtifactError: The store is missing, incomplete, or was changed after it was written.
        """
        return cls(artifacts.load(path, "store"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return sum(self._shards[split])

    def labels(self, split: str) -> Labels:
        """Return the labels of a whole split, int64 [N]."""
        shards = [
            map_npy(self._folder(split) / labels_file(number))
            for number in range(len(self._shards[split]))
        ]
        return np.concatenate([np.empty(0, np.int64), *shards])

    def batches(
        self, split: str, batch_rows: int, part: range | None = None
    ) -> Iterator[tuple[Images, Labels]]:
        """Read a split in order, with memory for one batch.

        The maps are closed after each batch, because the pages that were read count as memory of
        this process while they are mapped.

        Args:
            split: One of `SPLITS`.
            batch_rows: Rows per batch; the last batch may be smaller.
            part: Rows to read; None reads all.

        Yields:
            uint8 images [B, H, W, C] and int64 labels [B], which the caller may modify.
        """
        part = range(self.rows(split)) if part is None else part
        for start in range(part.start, part.stop, batch_rows):
            yield self._reader(split).read(np.arange(start, min(start + batch_rows, part.stop)))

    def gather(self, split: str, indices: Rows) -> tuple[Images, Labels]:
        """Read rows in any order; ascending rows are read fastest.

        The maps stay open for the next call.

        Args:
            split: One of `SPLITS`.
            indices: int64 [B] rows, 0 <= row < rows(split).

        Returns:
            uint8 images [B, H, W, C], C-contiguous, and int64 labels [B], in the order of
            `indices`.

        Raises:
            IndexError: A row is out of range.
        """
        rows = self.rows(split)
        if len(indices) and not (indices.min() >= 0 and indices.max() < rows):
            raise IndexError(f"rows of {split} are 0 to {rows - 1}")
        if split not in self._readers:
            self._readers[split] = self._reader(split)
        return self._readers[split].read(indices)

    def _reader(self, split: str) -> SplitReader:
        return SplitReader(
            self._folder(split), self._shards[split], self.image_shape, self._shard_reader
        )

    def _folder(self, split: str) -> Path:
        stored = "gallery" if split == "query" and self.leave_one_out else split
        return self.artifact.path / stored

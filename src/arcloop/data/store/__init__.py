"""Opens a store and reads its images and labels through memory maps of its shards."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.data.store.shards import Images, Labels, shard_file
from arcloop.errors import ArtifactError
from arcloop.runtime.images import Conversion, ImageError, decode

Rows = npt.NDArray[np.int64]

CLASSES = "classes.json"
GROUPS = "groups.json"

_MIN_ROWS_PER_THREAD = 8


class RawShard:
    """Reads rows of one shard; may be used from several threads at once.

    Args:
        folder: Folder of the split.
        number: Number of the shard.
    """

    max_threads = 1  # maximum number of threads that read one batch

    def __init__(self, folder: Path, number: int) -> None:
        self._labels: Labels = map_npy(folder / shard_file("labels", number))
        self._open_images(folder, number)

    def _open_images(self, folder: Path, number: int) -> None:
        self._images: Images = map_npy(folder / shard_file("images", number))

    def read(self, rows_B: Rows, images_BHWC: Images, labels_B: Labels) -> None:
        """Write the images and labels of these rows of the shard into the given arrays."""
        # With "clip", take() writes into `out` directly; with "raise" it copies through a buffer.
        self._labels.take(rows_B, 0, labels_B, "clip")
        self._images.take(rows_B, 0, images_BHWC, "clip")


class JpegShard(RawShard):
    """Reads images that are stored as JPEG, and decodes them."""

    max_threads = 8

    def _open_images(self, folder: Path, number: int) -> None:
        self._file = folder / shard_file("jpeg", number)
        self._bytes: npt.NDArray[np.uint8] = map_npy(self._file)
        self._offsets: npt.NDArray[np.int64] = map_npy(folder / shard_file("offsets", number))

    def read(self, rows_B: Rows, images_BHWC: Images, labels_B: Labels) -> None:
        """Decode the images of these rows.

        Raises:
            ArtifactError: An image cannot be decoded.
        """
        self._labels.take(rows_B, 0, labels_B, "clip")
        _, height, width, channels = images_BHWC.shape
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
            images_BHWC[position] = image


class Store:
    """A complete, verified store: uint8 images and int64 labels of four splits.

    A store can be pickled; each process opens the memory maps when it first reads from them.

    Args:
        artifact: Artifact of kind `store`.

    Attributes:
        artifact: The artifact that the store reads from.
        classes: Class names; a label is an index into them.
        image_shape: (H, W, C).
        conversion: How image files were converted to `image_shape`.
        num_train_classes: Number of classes in train. They have the first labels.
        leave_one_out: Whether gallery is also the query split. Row i of gallery and row i of query
            are then the same row of the same files.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._shard_class = RawShard if artifact.info.get("encoding", "raw") == "raw" else JpegShard
        height, width, channels = artifact.info["image_shape"]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self.classes: list[str] = json.loads((artifact.path / CLASSES).read_bytes())
        self.conversion = Conversion.from_dict(artifact.info)
        self.num_train_classes: int = artifact.info.get("train_classes", len(self.classes))
        self.leave_one_out: bool = artifact.info.get("leave_one_out", False)
        self._ends: dict[str, npt.NDArray[np.int64]] = {
            split: np.cumsum(facts["shards"], dtype=np.int64)
            for split, facts in artifact.info["splits"].items()
        }
        self._opened: dict[str, dict[int, RawShard]] = {}

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open and verify the store at `path`.

        Raises:
            ArtifactError: The store is missing, incomplete, or was changed after it was written.
        """
        return cls(artifacts.load(path, "store"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        ends = self._ends[split]
        return int(ends[-1]) if len(ends) else 0

    def labels(self, split: str) -> Labels:
        """Return the labels of a whole split, int64 [N]."""
        return self._read_column(split, "labels")

    def groups(self, split: str) -> Labels | None:
        """Return the group of each row of a split, for example its video or session.

        Rows with the same number belong to one group, in all splits and classes. A row with
        `NO_GROUP` (-1) has no group, which means that it is a group of its own.

        Returns:
            int64 [N] positions in the list of names in groups.json; None if the store has no
            groups.
        """
        if GROUPS not in self.artifact.files:
            return None
        return self._read_column(split, "groups")

    def describe(self, split: str, row: int) -> dict[str, Any]:
        """Return "file", the path of the image of a row, and "metadata", other columns of its list.

        A key is missing if the source does not have it. The path is relative to the source's root.
        """
        number = int(np.searchsorted(self._ends[split], row, side="right"))
        row -= int(self._ends[split][number - 1]) if number else 0
        folder, facts = self._folder(split), {}
        if (origins := folder / shard_file("origins", number)).exists():
            facts["file"] = os.fsdecode(map_npy(origins)["path"][row]).encode(
                "utf-8", "backslashreplace").decode()  # fmt: skip
        if (metadata := folder / shard_file("metadata", number)).exists():
            with open(metadata, "rb") as lines:
                facts["metadata"] = json.loads(next(itertools.islice(lines, row, None)))
        return facts

    def _read_column(self, split: str, kind: Literal["labels", "groups"]) -> Labels:
        shards = [
            map_npy(self._folder(split) / shard_file(kind, number))
            for number in range(len(self._ends[split]))
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
            yield self._read(split, np.arange(start, min(start + batch_rows, part.stop)), {})

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
        return self._read(split, indices, self._opened.setdefault(split, {}))

    def _read(self, split: str, rows_B: Rows, opened: dict[int, RawShard]) -> tuple[Images, Labels]:
        """Read rows; `opened` contains the shards that are already mapped, and new ones are added.

        Large batches are decoded in a few threads, because decoders release the GIL. A worker
        process of a loader uses one thread, because there are several such processes. The threads
        exit after the batch, because a forked worker could not use a persistent thread pool.
        """
        ends = self._ends[split]
        order_B = None
        if len(ends) > 1 and (rows_B[1:] < rows_B[:-1]).any():
            order_B = np.argsort(rows_B, kind="stable")
            rows_B = rows_B[order_B]
        images_BHWC = np.empty((len(rows_B), *self.image_shape), np.uint8)
        labels_B = np.empty(len(rows_B), np.int64)

        def read_part(start: int, end: int) -> None:
            # With one shard, the rows may be in any order.
            stops = rows_B[:end].searchsorted(ends).tolist() if len(ends) > 1 else [end]
            for number, stop in enumerate(stops):
                if stop > start:
                    if number not in opened:
                        opened[number] = self._shard_class(self._folder(split), number)
                    part, first_row = slice(start, stop), ends[number - 1] if number else 0
                    opened[number].read(rows_B[part] - first_row, images_BHWC[part], labels_B[part])
                    start = stop

        cores = 1 if multiprocessing.parent_process() else joblib.cpu_count()
        threads = min(cores, self._shard_class.max_threads, len(rows_B) // _MIN_ROWS_PER_THREAD)
        if threads <= 1:
            read_part(0, len(rows_B))
        else:
            cuts = [len(rows_B) * part // threads for part in range(threads + 1)]
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read_part, cuts[:-1], cuts[1:]))
        if order_B is None:
            return images_BHWC, labels_B
        inverse_B = np.empty_like(order_B)
        inverse_B[order_B] = np.arange(len(order_B))
        return images_BHWC[inverse_B], labels_B[inverse_B]

    def _folder(self, split: str) -> Path:
        stored = "gallery" if split == "query" and self.leave_one_out else split
        return self.artifact.path / stored


def map_npy(path: Path) -> npt.NDArray[Any]:
    """Return a read-only memory map of a .npy file.

    The result is a plain array because indexing an `np.memmap` runs additional Python code.
    """
    return np.load(path, mmap_mode="r").view(np.ndarray)  # type: ignore[no-any-return]

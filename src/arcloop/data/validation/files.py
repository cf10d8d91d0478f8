"""Reads the files of a store that may be damaged and reports every fault in them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_file
from arcloop.data.splits import SPLITS
from arcloop.data.store import CLASSES, GROUPS, map_npy
from arcloop.data.store.shards import Images, Labels, npy_header, rows_per_block, shard_file
from arcloop.data.validation.findings import Finding, Findings, Level
from arcloop.runtime.images import ImageError, decode, size_of

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard according to the manifest.

    Attributes:
        split: The split that the shard belongs to.
        rows: Number of rows.
        first_row: Index of its first row among the rows of all shards.
        images: Path of its images within the store.
        labels: Path of its labels within the store.
        offsets: Path, within the store, of the file with the start of each encoded image; None for
            raw images.
        origins: Path of its table of image files within the store.
        groups: Path of its groups within the store, if the store has groups.
    """

    split: str
    rows: int
    first_row: int
    images: str
    labels: str
    offsets: str | None
    origins: str
    groups: str


class StoreFiles:
    """Reads the files of a store and reports their faults.

    Args:
        store: The store, not verified.
        findings: Receives the faults.
    """

    def __init__(self, store: Artifact, findings: Findings) -> None:
        self._store, self._findings = store, findings
        self._maps: dict[str, npt.NDArray[Any]] = {}

    def list_shards(self) -> Iterator[ShardFiles]:
        """Yield all shards in the order of the splits, each shard once."""
        info, first_row = self._store.info, 0
        encoded = info.get("encoding", "raw") != "raw"
        # With leave-one-out, the query split has no files of its own.
        for split in SPLITS[:-1] if info.get("leave_one_out", False) else SPLITS:
            for number, rows in enumerate(info["splits"][split]["shards"]):
                yield ShardFiles(
                    split,
                    rows,
                    first_row,
                    f"{split}/{shard_file('jpeg' if encoded else 'images', number)}",
                    f"{split}/{shard_file('labels', number)}",
                    f"{split}/{shard_file('offsets', number)}" if encoded else None,
                    f"{split}/{shard_file('origins', number)}",
                    f"{split}/{shard_file('groups', number)}",
                )
                first_row += rows

    def check(self, name: str, split: str | None = None) -> bool:
        """Return whether a file has the size and sha256 in the manifest.

        Args:
            name: Path of the file within the store.
            split: The split that the file belongs to.
        """
        path, entry = self._store.path / name, self._store.files[name]
        try:
            size, sha256 = path.stat().st_size, sha256_file(path)
        except OSError as cause:
            message = f"cannot be read: {cause.strerror}"
        else:
            if size == entry["size"] and sha256 == entry["sha256"]:
                return True
            message = "was changed after it was written: its sha256 differs from the manifest"
            if size != entry["size"]:
                message = f"has {size} bytes, but {entry['size']} according to the manifest"
        self._findings.add(Finding("error", "checksum", message, split, name))
        return False

    def read_classes(self) -> list[str]:
        """Return the class names; placeholders if their file was changed."""
        if self.check(CLASSES):
            return list(json.loads((self._store.path / CLASSES).read_bytes()))
        return [f"class {label}" for label in range(self._store.info["classes"])]

    def read_labels(self, shard: ShardFiles) -> Labels | None:
        """Return the labels of a shard, int64 [N]; None if the file cannot be read completely."""
        labels = self._read_array(shard.split, shard.labels, shard.rows)
        if labels is None:
            return None
        num_classes = self._store.info["classes"]
        for row in np.flatnonzero((labels < 0) | (labels >= num_classes)).tolist():
            message = f"label {labels[row]} is not in 0 to {num_classes - 1}"
            self._findings.add(Finding("error", "label", message, shard.split, shard.labels, row))
        return labels

    def read_groups(self, shard: ShardFiles) -> Ints:
        """Return the groups of a shard, int64 [N]; empty if there are none or they are damaged."""
        groups = None
        if GROUPS in self._store.files:
            groups = self._read_array(shard.split, shard.groups, shard.rows)
        return np.empty(0, np.int64) if groups is None else groups

    def read_group_names(self) -> list[str]:
        """Return the names of the groups; empty if there are none, or if their file was changed."""
        if GROUPS in self._store.files and self.check(GROUPS):
            return list(json.loads((self._store.path / GROUPS).read_bytes()))
        return []

    def image_file(self, shard: ShardFiles, row: int) -> str | None:
        """Return the image file of a row, see `Finding.image`; None if its table is damaged."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            table = np.load(self._store.path / shard.origins, mmap_mode="r")
            return os.fsdecode(table["path"][row])
        return None

    def add_image(
        self,
        level: Level,
        check: str,
        message: str,
        shard: ShardFiles,
        row: int,
        *others: tuple[ShardFiles, int],
    ) -> None:
        """Add a finding about one image; `others` are images to show with it."""
        image = self.image_file(shard, row)
        finding = Finding(level, check, message, shard.split, shard.images, row, image)
        if self._findings.add(finding):
            pictures = [self.read_image(*place) for place in ((shard, row), *others)]
            shown = [picture for picture in pictures if picture is not None]
            if shown:
                self._findings.pictures[finding] = shown

    def read_image(self, shard: ShardFiles, row: int) -> Images | None:
        """Return an image, uint8 [H, W, C]; None if it cannot be read."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            images = self._map(shard.images)
            if shard.offsets is None:
                return np.array(images[row])
            offsets = self._map(shard.offsets)
            encoded = images[offsets[row] : offsets[row + 1]].tobytes()
            return _decode(encoded, *self._store.info["image_shape"])
        return None

    def _map(self, name: str) -> npt.NDArray[Any]:
        if name not in self._maps:
            self._maps[name] = map_npy(self._store.path / name)
        return self._maps[name]

    def read_images(self, shard: ShardFiles) -> Iterator[tuple[Ints, Images]]:
        """Read the images of a shard in blocks, without the images that cannot be read.

        Yields:
            Rows within the shard, [B], and their images, uint8 [B, H, W, C].
        """
        if shard.offsets is not None:
            yield from self._read_jpeg_images(shard, shard.offsets)
            return
        image_shape = self._store.info["image_shape"]
        row_bytes, block = math.prod(image_shape), rows_per_block(image_shape)
        file = self._open_npy(shard.split, shard.images, (shard.rows, *image_shape), np.uint8)
        if file is None:
            return
        with file:
            for start in range(0, shard.rows, block):
                values = np.fromfile(file, np.uint8, min(block, shard.rows - start) * row_bytes)
                complete = len(values) // row_bytes  # fewer if the file is truncated
                images = values[: complete * row_bytes].reshape(complete, *image_shape)
                yield np.arange(start, start + complete), images

    def _read_jpeg_images(self, shard: ShardFiles, offsets: str) -> Iterator[tuple[Ints, Images]]:
        image_shape = self._store.info["image_shape"]
        total = self._store.files[shard.images]["size"] - len(npy_header((0,), np.uint8))
        sizes = self._read_sizes(shard, offsets, total)
        file = self._open_npy(shard.split, shard.images, (total,), np.uint8)
        if file is None:
            return
        with file:
            block = rows_per_block(image_shape)
            for start in range(0, len(sizes), block):
                rows, images = [], []
                for row, size in enumerate(sizes[start : start + block], start):
                    try:
                        images.append(_decode(file.read(size), *image_shape))
                        rows.append(row)
                    except ImageError as cause:
                        self.add_image("error", "decode", str(cause), shard, row)
                if rows:
                    yield np.array(rows), np.stack(images)

    def _read_sizes(self, shard: ShardFiles, name: str, total: int) -> Sequence[int]:
        """Return the encoded size of each row; empty if the offsets are invalid."""
        offsets = self._read_array(shard.split, name, shard.rows + 1)
        if offsets is None:
            return ()
        sizes = np.diff(offsets)
        invalid = np.flatnonzero(sizes <= 0).tolist()
        if offsets[0] != 0:
            invalid.insert(0, 0)
        if offsets[-1] != total:
            invalid.append(shard.rows - 1)
        for row in invalid:
            message = f"invalid position of the image: bytes {offsets[row]} to {offsets[row + 1]}"
            message += f" of {total}"
            self._findings.add(Finding("error", "offset", message, shard.split, name, row))
        return () if invalid else sizes.tolist()

    def _read_array(self, split: str, name: str, rows: int) -> Ints | None:
        """Return an int64 array of this length, or None if the file is shorter or damaged."""
        file = self._open_npy(split, name, (rows,), np.int64)
        if file is None:
            return None
        with file:
            values: Ints = np.fromfile(file, np.int64, rows)
        return values if len(values) == rows else None

    def _open_npy(
        self, split: str, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> BinaryIO | None:
        """Check a .npy file and open it at its first value; None if its header is unexpected."""
        self.check(name, split)
        try:
            file = open(self._store.path / name, "rb")  # noqa: SIM115 - the caller closes it
        except OSError:  # reported by `check`
            return None
        expected = npy_header(shape, dtype)
        header = file.read(len(expected))
        if header == expected:
            return file
        file.close()
        found, right = (text[10:].decode("ascii", "replace").strip() for text in (header, expected))
        message = f"its header is {found!r}, not {right!r}"
        self._findings.add(Finding("error", "header", message, split, name))
        return None


def _decode(encoded: bytes, height: int, width: int, channels: int) -> Images:
    image = decode(encoded, height=height, width=width, channels=channels)
    if (found := size_of(encoded)) != (height, width):
        raise ImageError(f"the image has {found[0]} x {found[1]} pixels, not {height} x {width}")
    return image

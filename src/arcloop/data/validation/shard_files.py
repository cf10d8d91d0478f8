"""Reads the files of a store that may be damaged and reports every fault in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_file
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import (
    Images,
    Labels,
    images_file,
    jpeg_file,
    labels_file,
    npy_header,
    offsets_file,
    rows_per_block,
)
from arcloop.data.validation.findings import Findings
from arcloop.runtime.images import ImageError, decode, size_of

Ints = npt.NDArray[np.int64]
FileState = Literal["intact", "changed", "unreadable"]


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard according to the manifest.

    Attributes:
        split: The split that the shard belongs to.
        rows: Number of rows.
        first_row: Number of its first row, counted over all shards of the store.
        images: Path of its images within the store.
        labels: Path of its labels within the store.
        offsets: Path, within the store, of the file with the start of each encoded image; None for
            raw images.
    """

    split: str
    rows: int
    first_row: int
    images: str
    labels: str
    offsets: str | None


def list_shards(store: Artifact) -> list[ShardFiles]:
    """Return all shards of a store in the order of the splits, each shard once."""
    shards: list[ShardFiles] = []
    encoded = store.info.get("encoding", "raw") != "raw"
    images_name = jpeg_file if encoded else images_file
    first_row = 0
    # With leave-one-out, the query split has no files of its own.
    stored = SPLITS[:-1] if store.info.get("leave_one_out", False) else SPLITS
    for split in stored:
        for number, rows in enumerate(store.info["splits"][split]["shards"]):
            images, labels = f"{split}/{images_name(number)}", f"{split}/{labels_file(number)}"
            offsets = f"{split}/{offsets_file(number)}" if encoded else None
            shards.append(ShardFiles(split, rows, first_row, images, labels, offsets))
            first_row += rows
    return shards


def check_file(
    store: Artifact, name: str, findings: Findings, split: str | None = None
) -> FileState:
    """Compare the size and sha256 of a file with the manifest.

    Args:
        store: The store, not verified.
        name: Path of the file within the store.
        findings: Receives the faults.
        split: The split that the file belongs to.
    """
    path, entry = store.path / name, store.files[name]
    try:
        size, sha256 = path.stat().st_size, sha256_file(path)
    except OSError as cause:
        message = f"cannot be read: {cause.strerror}"
        findings.add("error", "checksum", message, split=split, file=name)
        return "unreadable"
    if size == entry["size"] and sha256 == entry["sha256"]:
        return "intact"
    if size != entry["size"]:
        message = f"has {size} bytes, but {entry['size']} according to the manifest"
    else:
        message = "was changed after it was written: its sha256 differs from the manifest"
    findings.add("error", "checksum", message, split=split, file=name)
    return "changed"


def read_labels(store: Artifact, shard: ShardFiles, findings: Findings) -> Labels | None:
    """Return the labels of a shard, int64 [N], or None if the file is incomplete.

    Args:
        store: The store, not verified.
        shard: One of its shards.
        findings: Receives the faults of the file and of the labels.
    """
    labels = _read_array(store, shard.split, shard.labels, shard.rows, findings)
    if labels is None:
        return None
    num_classes = store.info["classes"]
    for row in np.flatnonzero((labels < 0) | (labels >= num_classes)).tolist():
        message = f"label {labels[row]} is not in 0 to {num_classes - 1}"
        findings.add("error", "label", message, split=shard.split, file=shard.labels, row=row)
    return labels


def read_images(
    store: Artifact, shard: ShardFiles, findings: Findings
) -> Iterator[tuple[Ints, Images]]:
    """Read the images of a shard in blocks, without the images that cannot be read.

    Args:
        store: The store, not verified.
        shard: One of its shards.
        findings: Receives the faults of the files and of the encoded images.

    Yields:
        Rows within the shard, [B], and their images, uint8 [B, H, W, C].
    """
    if shard.offsets is not None:
        yield from _read_jpeg_images(store, shard, shard.offsets, findings)
        return
    image_shape = store.info["image_shape"]
    shape, row_bytes = (shard.rows, *image_shape), math.prod(image_shape)
    file = _open_npy(store, shard.split, shard.images, shape, np.uint8, findings)
    if file is None:
        return
    with file:
        block = rows_per_block(image_shape)
        for start in range(0, shard.rows, block):
            values = np.fromfile(file, np.uint8, min(block, shard.rows - start) * row_bytes)
            complete = len(values) // row_bytes  # fewer if the file is truncated
            if not complete:
                return
            images = values[: complete * row_bytes].reshape(complete, *image_shape)
            yield np.arange(start, start + complete), images


def _read_jpeg_images(
    store: Artifact, shard: ShardFiles, offsets: str, findings: Findings
) -> Iterator[tuple[Ints, Images]]:
    height, width, channels = store.info["image_shape"]
    total = store.files[shard.images]["size"] - len(npy_header((0,), np.uint8))
    sizes = _read_sizes(store, shard, offsets, total, findings)
    file = _open_npy(store, shard.split, shard.images, (total,), np.uint8, findings)
    if file is None:
        return
    with file:
        block = rows_per_block((height, width, channels))
        for start in range(0, len(sizes), block):
            rows, images = [], []
            for row, size in enumerate(sizes[start : start + block], start):
                try:
                    images.append(_decode(file.read(size), height, width, channels))
                    rows.append(row)
                except ImageError as cause:
                    findings.add(
                        "error", "decode", str(cause),
                        split=shard.split, file=shard.images, row=row,
                    )  # fmt: skip
            if rows:
                yield np.array(rows), np.stack(images)


def _decode(encoded: bytes, height: int, width: int, channels: int) -> Images:
    image = decode(encoded, height=height, width=width, channels=channels)
    if (found := size_of(encoded)) != (height, width):
        raise ImageError(f"the image has {found[0]} x {found[1]} pixels, not {height} x {width}")
    return image


def _read_sizes(
    store: Artifact, shard: ShardFiles, name: str, total: int, findings: Findings
) -> Sequence[int]:
    """Return the encoded size of each row; empty if the offsets are invalid."""
    offsets = _read_array(store, shard.split, name, shard.rows + 1, findings)
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
        findings.add("error", "offset", message, split=shard.split, file=name, row=row)
    return () if invalid else sizes.tolist()


def _read_array(
    store: Artifact, split: str, name: str, rows: int, findings: Findings
) -> Ints | None:
    """Return an int64 array of this length, or None if the file does not contain all of it."""
    file = _open_npy(store, split, name, (rows,), np.int64, findings)
    if file is None:
        return None
    with file:
        values: Ints = np.fromfile(file, np.int64, rows)
    return values if len(values) == rows else None


def _open_npy(
    store: Artifact,
    split: str,
    name: str,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    findings: Findings,
) -> BinaryIO | None:
    """Check a .npy file and open it at its first value; None if its header is wrong."""
    if check_file(store, name, findings, split) == "unreadable":
        return None
    expected = npy_header(shape, dtype)
    file = open(store.path / name, "rb")  # noqa: SIM115 - the caller closes it
    header = file.read(len(expected))
    if header == expected:
        return file
    file.close()
    message = f"its header is {_header_text(header)!r}, not {_header_text(expected)!r}"
    findings.add("error", "header", message, split=split, file=name)
    return None


def _header_text(header: bytes) -> str:
    return header[10:].decode("ascii", "replace").strip()

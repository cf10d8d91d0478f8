"""The files of a store against its manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.checked_file import CheckedFile
from arcloop.data.faults import Fault, Faults
from arcloop.data.shards import Images, Labels, images_file, labels_file, npy_header
from arcloop.data.source import SPLITS

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard.

    Attributes:
        split: Its split.
        rows: Its rows.
        first: Number of its first row, counted over the whole store.
        images: Path of its images within the store.
        labels: Path of its labels within the store.
    """

    split: str
    rows: int
    first: int
    images: str
    labels: str


def list_shards(store: Artifact) -> list[Shard]:
    """Return the shards of all splits that are stored, in order."""
    shards: list[Shard] = []
    first = 0
    stored = SPLITS[:-1] if store.info.get("leave_one_out", False) else SPLITS  # without query
    for split in stored:
        for number, rows in enumerate(store.info["splits"][split]["shards"]):
            images, labels = f"{split}/{images_file(number)}", f"{split}/{labels_file(number)}"
            shards.append(Shard(split, rows, first, images, labels))
            first += rows
    return shards


def check_labels(store: Artifact, shard: Shard, faults: Faults) -> Labels | None:
    """Return the labels of a shard, int64 [N]; None if they are not whole.

    Args:
        store: The store, not verified.
        shard: One of its shards.
        faults: Told of what is wrong with the file or a label.
    """
    blocks = [
        block.copy()
        for block in _check_file(store, shard.split, shard.labels, (shard.rows,), np.int64, faults)
    ]
    labels = np.concatenate([*blocks, np.empty(0, np.int64)])
    if len(labels) < shard.rows:
        return None
    fault = partial(Fault, level="error", check="label", split=shard.split, file=shard.labels)
    num_classes = store.info["classes"]
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    for row in wrong:
        faults.add(
            fault(message=f"label {labels[row]} is not in 0 to {num_classes - 1}", row=int(row))
        )
    return labels


def check_images(store: Artifact, shard: Shard, faults: Faults) -> Iterator[tuple[int, Images]]:
    """Yield the images of a shard in blocks, with the row of the first; faults are told."""
    shape = (shard.rows, *store.info["image_shape"])
    start = 0
    for images in _check_file(store, shard.split, shard.images, shape, np.uint8, faults):
        yield start, images
        start += len(images)


def _check_file(
    store: Artifact,
    split: str,
    name: str,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    faults: Faults,
) -> Iterator[npt.NDArray[Any]]:
    """Yield blocks of a file that is of the right shape and type, as far as it goes."""
    fault = partial(Fault, level="error", split=split, file=name)
    block_rows = max(1, _BLOCK_BYTES // (math.prod(shape[1:]) * np.dtype(dtype).itemsize))
    path, entry = store.path / name, store.files[name]
    try:
        with CheckedFile(path) as file:
            header = npy_header(shape, dtype)
            found = file.read(len(header))
            if found == header:
                yield from file.blocks(shape, dtype, block_rows)
            else:
                message = f"its header is {_text(found)!r}, not {_text(header)!r}"
                faults.add(fault(check="header", message=message))
            sha256, size = file.sha256(), path.stat().st_size
    except OSError as cause:
        faults.add(fault(check="checksum", message=f"cannot be read: {cause.strerror}"))
        return
    if size != entry["size"]:
        message = f"has {size} bytes, not {entry['size']} as when it was written"
        faults.add(fault(check="checksum", message=message))
    elif sha256 != entry["sha256"]:
        message = "has other contents than when it was written"
        faults.add(fault(check="checksum", message=message))


def _text(header: bytes) -> str:
    return header[10:].decode("ascii", "replace").strip()

"""The files of a store against its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from arcloop.artifacts import Artifact
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import (
    Images,
    Labels,
    images_file,
    jpeg_file,
    labels_file,
    offsets_file,
    rows_per_block,
)
from arcloop.data.validation.checked_file import checking
from arcloop.data.validation.findings import Fault, Faults
from arcloop.data.validation.jpeg_check import check_jpeg


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard.

    Attributes:
        split: Its split.
        rows: Its rows.
        first: Number of its first row, counted over the whole store.
        images: Path of its images within the store.
        labels: Path of its labels within the store.
        offsets: Path of the file that says where each image starts, if they are encoded.
    """

    split: str
    rows: int
    first: int
    images: str
    labels: str
    offsets: str | None


def list_shards(store: Artifact) -> list[Shard]:
    """Return the shards of all splits that are stored, in order."""
    shards: list[Shard] = []
    encoded = store.info.get("encoding", "raw") != "raw"
    images_name = jpeg_file if encoded else images_file
    first = 0
    stored = SPLITS[:-1] if store.info.get("leave_one_out", False) else SPLITS  # without query
    for split in stored:
        for number, rows in enumerate(store.info["splits"][split]["shards"]):
            images, labels = f"{split}/{images_name(number)}", f"{split}/{labels_file(number)}"
            offsets = f"{split}/{offsets_file(number)}" if encoded else None
            shards.append(Shard(split, rows, first, images, labels, offsets))
            first += rows
    return shards


def check_labels(store: Artifact, shard: Shard, faults: Faults) -> Labels | None:
    """Return the labels of a shard, int64 [N]; None if they are not whole.

    Args:
        store: The store, not verified.
        shard: One of its shards.
        faults: Told of what is wrong with the file or a label.
    """
    labels = np.empty(0, np.int64)
    shape = (shard.rows,)
    with checking(store, shard.split, shard.labels, shape, np.int64, faults) as file:
        if file:
            (labels,) = file.blocks(shape, np.int64, shard.rows)
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
    height, width, channels = store.info["image_shape"]
    if shard.offsets is not None:
        image_shape = (height, width, channels)
        yield from check_jpeg(
            store, shard.split, shard.images, shard.offsets, shard.rows, image_shape, faults
        )
        return
    shape = (shard.rows, height, width, channels)
    start = 0
    with checking(store, shard.split, shard.images, shape, np.uint8, faults) as file:
        if file:
            for images in file.blocks(shape, np.uint8, rows_per_block(shape[1:])):
                yield start, images
                start += len(images)

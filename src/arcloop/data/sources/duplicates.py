"""Equal images among the files of a source, compared after decoding."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.decoding import ImageBlock, decode_blocks
from arcloop.data.sources.picture_table import PictureTable
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import Images
from arcloop.display.terminal import track
from arcloop.runtime.images import Conversion

Ints = npt.NDArray[np.int64]
DIGEST_BYTES = 16
"""With this length, the probability that different images have equal hashes is negligible."""


@dataclass(frozen=True)
class Duplicates:
    """Files to leave out, because another file has the same pixels.

    Attributes:
        dropped: [N] numbers of the files, in ascending order.
        kept: [N] number of the file that is kept in place of each.
    """

    dropped: Ints
    kept: Ints

    def describe(self, table: PictureTable) -> list[str]:
        """Return a line for each dropped file; those with another label come first."""
        lines: list[tuple[bool, str]] = []
        for dropped, kept in zip(self.dropped.tolist(), self.kept.tolist(), strict=True):
            label, other = table.labels[dropped], table.labels[kept]
            line = f"{table.files.name(dropped)}: the same picture as {table.files.name(kept)}"
            if label != other:
                line += f", but of class {table.classes[label]!r} instead of"
                line += f" {table.classes[other]!r}"
            lines.append((bool(label == other), line))
        return [line for _, line in sorted(lines)]


def digest_images(images: Images) -> list[bytes]:
    """Return a hash of the pixels of each image [N, H, W, C]."""
    contiguous = np.ascontiguousarray(images)
    return [hashlib.blake2b(image.data, digest_size=DIGEST_BYTES).digest() for image in contiguous]


def equal_groups(digests: bytearray, rows: Ints) -> Iterator[Ints]:
    """Yield the rows of each group of two or more equal images, in the given order.

    Args:
        digests: Hashes of the images, one after another, see `digest_images`.
        rows: [N] number of the row of each image.

    >>> list(equal_groups(bytearray(b"a" * 16 + b"b" * 16 + b"a" * 16), np.array([4, 5, 7])))
    [array([4, 7])]
    """
    hashes = np.frombuffer(digests, f"V{DIGEST_BYTES}").view("S16")
    order = np.argsort(hashes, kind="stable")
    is_first = np.append(True, hashes[order][1:] != hashes[order][:-1])[: len(order)]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield rows[order[start : start + size]]


def find_duplicates(
    table: PictureTable,
    image_shape: tuple[int, int, int],
    conversion: Conversion,
    *,
    block_rows: int,
    workers: int,
) -> Duplicates:
    """Decode all files, and select one to keep of each group with equal pixels.

    If the source defines the splits, this is the file in the first of `SPLITS`, so that copies are
    removed from the evaluation splits and not from train. Otherwise it is the first file. Files
    that cannot be decoded are not compared.

    Args:
        table: The files of the source.
        image_shape: (H, W, C) in which images are compared.
        conversion: How images are converted to this shape.
        block_rows: Files that a process decodes at a time.
        workers: Number of processes.

    Raises:
        ResourceError: A worker process died.
    """
    split_N = np.zeros(len(table.labels), np.int64)
    for split, numbers in (table.given or {}).items():
        split_N[numbers] = SPLITS.index(split)
    order = np.argsort(split_N, kind="stable")
    digests, decoded = bytearray(), array("q")
    with track("compare images", len(order)) as advance:
        for block in decode_blocks(
            _blocks(table, order, image_shape, conversion, block_rows), workers
        ):
            digests += b"".join(block.images)
            decoded.extend(block.labels.tolist())
            advance(len(block.labels) + len(block.unreadable))
    dropped, kept = array("q"), array("q")
    for first, *others in equal_groups(digests, np.frombuffer(decoded, np.int64)):
        dropped.extend(others)
        kept.extend([first] * len(others))
    order = np.argsort(np.frombuffer(dropped, np.int64))
    return Duplicates(np.frombuffer(dropped, np.int64)[order], np.frombuffer(kept, np.int64)[order])


def _blocks(
    table: PictureTable,
    order: Ints,
    image_shape: tuple[int, int, int],
    conversion: Conversion,
    block_rows: int,
) -> Iterator[ImageBlock]:
    """Yield the files in this order, with the number of each file as its label."""
    for start in range(0, len(order), block_rows):
        chosen: Sequence[int] = order[start : start + block_rows].tolist()
        yield table.files.block(
            chosen, split="", labels=list(chosen), image_shape=image_shape, conversion=conversion,
            encode=digest_images,
        )  # fmt: skip

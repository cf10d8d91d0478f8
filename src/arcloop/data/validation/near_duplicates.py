"""Images that look alike: scaled, recompressed, or slightly brighter copies of each other.

Candidates are found by difference hashes of 64 bits (dHash). Their pixels are then compared,
because many drawings of different things have similar hashes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from arcloop.data.store.shards import Images

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
ReadImage = Callable[[int], Images | None]
"""Row among those of all shards -> uint8 [H, W, C]; None if it cannot be read."""

_BITS = 64
_MIN_DIFFERENCE = 2  # of 255; flat areas of recompressed images differ by less
_WINDOW = 256  # hashes with equal bands that each hash is compared with
_SIDE = 16  # cells per side, in which pixels are compared
_MIN_CORRELATION, _MIN_CONTRAST_RATIO = 0.98, 0.75
_MAX_CANDIDATES = 100_000
_BLOCK = 512  # pairs whose pixels are compared at a time


def hash_images(images: Images) -> Hashes:
    """Return the difference hash of each image: whether each cell is brighter than its left one.

    Args:
        images: uint8 [N, H, W, C].

    Returns:
        uint64 [N], one bit for each of 8 x 8 differences.
    """
    cells = _cell_means(images, 8, 9).mean(axis=3)
    is_brighter = cells[:, :, 1:] - cells[:, :, :-1] > _MIN_DIFFERENCE
    packed = np.packbits(is_brighter.reshape(-1, _BITS), axis=1)
    hashes: Hashes = packed.view(np.uint64)[:, 0]
    return hashes


def _cell_means(images: Images, height: int, width: int) -> npt.NDArray[np.float64]:
    """Return the means, [N, height, width, C], of cells of about equal size."""
    rows, columns = (
        np.arange(cells) * pixels // cells
        for cells, pixels in zip((height, width), images.shape[1:3], strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(images, rows, 1, np.int64), columns, 2)
    ones = np.ones(images.shape[1:3], np.int64)
    counts = np.add.reduceat(np.add.reduceat(ones, rows, 0), columns, 1)
    return np.asarray(sums / counts[..., None])


def similar_hashes(hashes: Hashes, distance: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield pairs of hashes that differ in at most `distance` bits; a pair may occur repeatedly.

    The bits are divided into `distance` + 2 bands, so at least two bands of such a pair are equal.
    For each two bands, hashes that are equal in them are sorted, and each is compared with the next
    256, so that time is proportional to N log N. Pairs farther apart in this order are missed.

    Args:
        hashes: [N].
        distance: Number of bits, 0 to 30.

    Yields:
        Positions of the first and the second hash of each pair, [P] each.
    """
    bands = [sum(1 << bit for bit in range(first, _BITS, distance + 2)) for first in
             range(distance + 2)]  # fmt: skip
    for one, other in itertools.combinations(bands, 2):
        keys = hashes & np.uint64(one | other)
        order = np.lexsort((hashes, keys))
        hash_N, key_N = hashes[order], keys[order]
        places = np.arange(len(hashes))
        for step in range(1, _WINDOW + 1):
            places = places[places + step < len(hashes)]
            places = places[key_N[places] == key_N[places + step]]
            if not len(places):
                break
            bits = np.bitwise_count(hash_N[places] ^ hash_N[places + step])
            near = places[bits <= distance]
            yield order[near], order[near + step]


def similar_images(
    hashes: Hashes,
    rows: Ints,
    distance: int,
    is_relevant: Callable[[Ints, Ints], npt.NDArray[np.bool_]],
    read: ReadImage,
) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows whose images look alike, the most similar hashes first.

    Each row is the second of at most one pair, so there are fewer pairs than rows.
    At most 100,000 pairs of hashes are compared by their pixels.

    Args:
        hashes: [N] hashes of different images, see `hash_images`.
        rows: [N] row of each image, in ascending order.
        distance: Largest number of different bits of two hashes.
        is_relevant: Returns which pairs of rows to compare.
        read: Reads an image.
    """
    size = len(hashes)
    codes = np.empty(0, np.int64)  # distance, first and second number: sorted by distance
    for left, right in similar_hashes(hashes, distance):
        one, other = np.minimum(left, right), np.maximum(left, right)
        chosen = is_relevant(rows[one], rows[other])
        one, other = one[chosen], other[chosen]
        bits = np.bitwise_count(hashes[one] ^ hashes[other]).astype(np.int64)
        codes = np.append(codes, (bits * size + one) * size + other)
        if len(codes) > 4 * _MAX_CANDIDATES:
            codes = np.unique(codes)[:_MAX_CANDIDATES]
    codes = np.unique(codes)[:_MAX_CANDIDATES]
    ones, others = rows[codes // size % size], rows[codes % size]
    found: set[int] = set()
    for start in range(0, len(codes), _BLOCK):
        block = [
            (one, other, image, second)
            for one, other in zip(
                ones[start : start + _BLOCK].tolist(), others[start : start + _BLOCK].tolist(),
                strict=True,
            )
            if other not in found
            and (image := read(one)) is not None
            and (second := read(other)) is not None
        ]  # fmt: skip
        if not block:
            continue
        images, seconds = (np.stack([pair[place] for pair in block]) for place in (2, 3))
        is_alike = look_alike(images, seconds)
        for (one, other, _, _), alike in zip(block, is_alike.tolist(), strict=True):
            if alike and other not in found:
                found.add(other)
                yield one, other


def look_alike(images: Images, others: Images) -> npt.NDArray[np.bool_]:
    """Return which pairs of images differ only in noise, brightness and contrast.

    Args:
        images: uint8 [N, H, W, C].
        others: The images to compare them with, [N, H, W, C].

    Returns:
        bool [N].
    """
    size = [min(pixels, _SIDE) for pixels in images.shape[1:3]]
    one, other = (_cell_means(of, *size).reshape(len(of), -1) for of in (images, others))
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    norms = np.linalg.norm([one, other], axis=2)
    is_equal = np.einsum("nk,nk->n", one, other) >= _MIN_CORRELATION * norms.prod(axis=0)
    return np.asarray(is_equal & (norms.min(axis=0) >= _MIN_CONTRAST_RATIO * norms.max(axis=0)))

"""Finds the images of one store in another, e.g. if the same files were stored in two sizes.

Shapes: N rows of a split.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.data.store import Rows, Store, map_npy
from arcloop.data.store.shards import shard_file
from arcloop.data.store.source_files import hash_content

_ROWS_PER_READ = 1024


def match_rows(store: Store, other: Store, split: str) -> Rows | None:
    """Find the rows of a split in the same split of another store.

    Images are identified by path and content of their files. If a source does not have one file per
    image, they are identified by their pixels, which are equal only in stores of one image size.

    Args:
        store: The first store.
        other: The other store.
        split: One of `SPLITS`.

    Returns:
        int64 [N], the row of `other` that has the image of each row; None if the splits differ in
        an image or in the class of an image.
    """
    if store.rows(split) != other.rows(split):
        return None
    keys = [_file_keys(one, split) for one in (store, other)]
    if any(of_store is None for of_store in keys):
        if store.image_shape != other.image_shape:
            return None
        keys = [_pixel_keys(one, split) for one in (store, other)]
    found, other_found = (np.asarray(of_store) for of_store in keys)
    order, other_order = (np.argsort(one, kind="stable") for one in (found, other_found))
    if not np.array_equal(found[order], other_found[other_order]):
        return None
    rows = np.empty_like(order)
    rows[order] = other_order
    labels = other_labels(store, other)[other.labels(split)[rows]]
    return rows if np.array_equal(labels, store.labels(split)) else None


def other_labels(store: Store, other: Store) -> npt.NDArray[np.int64]:
    """Return the label in `store` of each class of `other`; -1 for a class that it lacks."""
    labels = {name: label for label, name in enumerate(store.classes)}
    return np.array([labels.get(name, -1) for name in other.classes], np.int64)


def _file_keys(store: Store, split: str) -> npt.NDArray[Any] | None:
    """Return hash and path of the file of each row; None if the store does not record both."""
    folder = "gallery" if split == "query" and store.leave_one_out else split
    names = [
        f"{folder}/{shard_file('origins', number)}"
        for number in range(len(store.artifact.info["splits"][split]["shards"]))
    ]
    if not names or not all(name in store.artifact.files for name in names):
        return None
    keys = []
    for name in names:
        files = map_npy(store.artifact.path / name)
        if "hash" not in (files.dtype.names or ()):  # stores of earlier versions have none
            return None
        hashes = np.array([f"{value:016x}#" for value in files["hash"].view(np.uint64)], np.bytes_)
        keys.append(np.strings.add(hashes, files["path"]))
    return np.concatenate(keys)


def _pixel_keys(store: Store, split: str) -> npt.NDArray[Any] | None:
    """Return the hash of the pixels of each row."""
    hashes = [
        hash_content(image_HWC.tobytes())
        for images_BHWC, _ in store.batches(split, _ROWS_PER_READ)
        for image_HWC in images_BHWC
    ]
    return np.array(hashes, np.int64)

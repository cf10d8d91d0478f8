"""A shard of encoded images against its manifest: every row is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.store.shards import Images, npy_header, rows_per_block
from arcloop.data.validation.checked_file import checking
from arcloop.data.validation.findings import Fault, Faults
from arcloop.runtime.images import ImageError, decode, size_of


def check_jpeg(
    store: Artifact,
    split: str,
    name: str,
    offsets_name: str,
    rows: int,
    image_shape: tuple[int, int, int],
    faults: Faults,
) -> Iterator[tuple[int, Images]]:
    """Yield the decoded images of a shard in blocks, with the row of the first.

    A row that cannot be decoded is told of, and left out. The bytes are read once, in order.

    Args:
        store: The store, not verified.
        split: The shard's split.
        name: Path of its bytes within the store.
        offsets_name: Path of its offsets within the store.
        rows: Its rows.
        image_shape: (H, W, C).
        faults: Told of what is wrong.
    """
    total = store.files[name]["size"] - len(npy_header((0,), np.uint8))
    sizes = _check_offsets(store, split, offsets_name, rows, total, faults)
    fault = partial(Fault, level="error", check="decode", split=split, file=name)
    block = np.empty((rows_per_block(image_shape), *image_shape), np.uint8)
    held = 0
    with checking(store, split, name, (total,), np.uint8, faults) as file:
        for row, size in enumerate(sizes if file else ()):
            assert file is not None
            try:
                block[held] = _decode(file.read(size), image_shape)
                held += 1
            except ImageError as cause:
                faults.add(fault(message=str(cause), row=row))
                if held:
                    yield row - held, block[:held]
                held = 0
            if held == len(block):
                yield row + 1 - held, block
                held = 0
        if held:
            yield rows - held, block[:held]


def _decode(encoded: bytes, image_shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    height, width, channels = image_shape
    image = decode(encoded, height=height, width=width, channels=channels)
    if (found := size_of(encoded)) != (height, width):
        raise ImageError(f"it has {found[0]} x {found[1]} pixels, not {height} x {width}")
    return image


def _check_offsets(
    store: Artifact, split: str, name: str, rows: int, total: int, faults: Faults
) -> Sequence[int]:
    """Return how many bytes each row has; nothing, if where a row is cannot be told."""
    shape = (rows + 1,)
    offsets = np.empty(0, np.int64)
    with checking(store, split, name, shape, np.int64, faults) as file:
        if file:
            (offsets,) = file.blocks(shape, np.int64, rows + 1)
    if len(offsets) < rows + 1:
        return ()
    sizes = np.diff(offsets)
    torn = np.flatnonzero(sizes <= 0).tolist()
    if offsets[0] != 0:
        torn.insert(0, 0)
    if offsets[-1] != total:
        torn.append(rows - 1)
    for row in torn:
        where = f"from byte {offsets[row]} to {offsets[row + 1]} of {total}"
        faults.add(
            Fault(
                level="error",
                check="offset",
                message=f"its image would be {where}",
                split=split,
                file=name,
                row=row,
            )
        )
    return () if torn else sizes.tolist()

"""Many small PNGs decoded as one tall image: for each alone, most of the time goes into beginning.

Their rows are unpacked, stacked, and given to Pillow's decoder together. To the bit, the pixels are
those of `images.decode`, to which everything that is not plain and whole is left.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from arcloop.runtime.images import plain_png

MAX_BYTES = 1 << 13
"""Of pixels of one image; above, decoding them one by one is as fast."""
_FILTERS = 5  # of a row, as PNG numbers them


class PngSheet:
    """Plain PNGs, see `images.plain_png`, that have the size and mode they are wanted in.

    Args:
        height: Rows of each, in pixels.
        width: Columns of each, in pixels.
        channels: 1 (grey) or 3 (RGB).
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        self._shape = (height, width, channels)
        self._wanted = ("L" if channels == 1 else "RGB", width, height)
        self._stride = 1 + width * channels  # of a row, which its filter goes before
        self._bytes = height * self._stride
        self._rows: list[bytes] = []

    def add(self, encoded: bytes) -> bool:
        """Take an image, if it is such a one and nothing is wrong with it."""
        if self._bytes > MAX_BYTES or (found := plain_png(encoded)) is None:
            return False
        *kind, packed = found
        if tuple(kind) != self._wanted:
            return False
        unpacking = zlib.decompressobj()
        try:
            rows = unpacking.decompress(packed, self._bytes + 1)
        except zlib.error:
            return False
        whole = unpacking.eof and len(rows) == self._bytes
        if not whole or max(rows[:: self._stride]) >= _FILTERS:
            return False
        self._rows += (b"\0" * self._stride, rows)  # a filter may look at the row above: none
        return True

    def decode(self) -> npt.NDArray[np.uint8]:
        """Return [N, height, width, channels]: the images taken, in order."""
        height, width, channels = self._shape
        count = len(self._rows) // 2
        if not count:
            return np.empty((0, *self._shape), np.uint8)
        mode, size = self._wanted[0], (width, count * (height + 1))
        packed = zlib.compress(b"".join(self._rows), 0)
        sheet = Image.frombytes(mode, size, packed, "zip", mode, 0).tobytes()
        return np.frombuffer(sheet, np.uint8).reshape(count, height + 1, width, channels)[:, 1:]

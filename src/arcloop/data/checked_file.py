"""A file that may be damaged: read once from begin to end, hashed on the way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 20


class CheckedFile:
    """Reads what there is, whatever there should be.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = open(self._path, "rb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        data = self._file.read(size)
        self._sha256.update(data)
        return data

    def blocks(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, rows: int
    ) -> Iterator[npt.NDArray[Any]]:
        """Yield an array of this shape, `rows` rows at a time, up to the last whole one there is.

        A block is overwritten by the next.
        """
        row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        buffer = np.empty(min(rows, shape[0]) * row_bytes, np.uint8)
        for start in range(0, shape[0], rows):
            view = buffer[: min(rows, shape[0] - start) * row_bytes]
            read = self._file.readinto(view.data)
            self._sha256.update(view.data[:read])
            yield view[: read - read % row_bytes].view(dtype).reshape(-1, *shape[1:])
            if read < len(view):
                return

    def sha256(self) -> str:
        """Read what is left, and return the hash of the whole file."""
        while self.read(_CHUNK):
            pass
        return self._sha256.hexdigest()

"""A file that may be damaged: read once from begin to end, hashed on the way."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.store.shards import npy_header
from arcloop.data.validation.findings import Fault, Faults

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


@contextlib.contextmanager
def checking(
    store: Artifact,
    split: str,
    name: str,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    faults: Faults,
) -> Iterator[CheckedFile | None]:
    """Open a .npy of a store behind its header, and compare its hash when the caller is done.

    Args:
        store: The store, not verified.
        split: The split that the file is in.
        name: Path of the file within the store.
        shape: What the header must say.
        dtype: What the header must say.
        faults: Told of what is wrong.

    Yields:
        The file; None if there is nothing in it that could be read as such an array.
    """
    fault = partial(Fault, level="error", split=split, file=name)
    path, entry = store.path / name, store.files[name]
    header = npy_header(shape, dtype)
    given = False
    try:
        with CheckedFile(path) as file:
            found = file.read(len(header))
            if found != header:
                message = f"its header is {_text(found)!r}, not {_text(header)!r}"
                faults.add(fault(check="header", message=message))
            given = True
            yield file if found == header else None
            sha256, size = file.sha256(), path.stat().st_size
    except OSError as cause:
        faults.add(fault(check="checksum", message=f"cannot be read: {cause.strerror}"))
        if not given:
            yield None
        return
    if size != entry["size"]:
        message = f"has {size} bytes, not {entry['size']} as when it was written"
        faults.add(fault(check="checksum", message=message))
    elif sha256 != entry["sha256"]:
        message = "has other contents than when it was written"
        faults.add(fault(check="checksum", message=message))


def _text(header: bytes) -> str:
    return header[10:].decode("ascii", "replace").strip()

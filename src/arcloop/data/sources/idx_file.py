"""Reading the IDX format of MNIST as a stream, gzip or plain.

Format: http://yann.lecun.com/exdb/mnist: two zero bytes, type of the values (0x08: uint8), number
of dimensions, then each dimension as a big-endian int32, then the values.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError

_RESTORE = "restore the file from where it came from"


def read_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """Read the header of an IDX file of uint8.

    Args:
        path: The file; its name ends in ".gz" if it is gzip.
        dimensions: How many it must have.

    Raises:
        DataError: It is no IDX file, or of another type or number of dimensions.
    """
    with _open(path) as file:
        return _read_header(file, path, dimensions)


def read_all(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read a whole IDX file of uint8: for labels, which are small.

    Raises:
        DataError: It is no such file, or shorter or longer than its header says.
    """
    shape = read_shape(path, dimensions)
    values = np.concatenate([*read_blocks(path, dimensions, 1 << 20), np.empty(0, np.uint8)])
    return values.reshape(shape)


def read_blocks(path: Path, dimensions: int, rows: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Read an IDX file of uint8 from begin to end.

    Args:
        path: The file.
        dimensions: How many it must have; the first counts rows.
        rows: Rows in a block.

    Yields:
        uint8 [rows or fewer at the end, ...]; overwritten by the next block.

    Raises:
        DataError: It is no such file, or shorter or longer than its header says.
    """
    with _open(path) as file:
        total, *shape = _read_header(file, path, dimensions)
        row_bytes = math.prod(shape)
        buffer = bytearray(min(rows, total) * row_bytes)
        for start in range(0, total, rows):
            count = min(rows, total - start)
            view = memoryview(buffer)[: count * row_bytes]
            with readable(path):
                read = _read_into(file, view)
            if read < len(view):
                raise DataError(
                    f"short file: it ends in row {start + read // row_bytes}"
                    f" of the {total} its header announces",
                    where=path,
                    remedy=_RESTORE,
                )
            yield np.frombuffer(view, np.uint8).reshape(count, *shape)
        with readable(path):
            if file.read(1):
                raise DataError(
                    f"the file goes on after the {total} rows its header announces",
                    where=path,
                    remedy=_RESTORE,
                )


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with readable(path):
        return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _read_header(file: io.BufferedIOBase, path: Path, dimensions: int) -> tuple[int, ...]:
    with readable(path):
        header = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"wrong magic number {header[:4].hex() or '(empty file)'}: an IDX file of"
            f" {'images' if dimensions == 3 else 'labels'} starts with {magic.hex()}",
            where=path,
            remedy="check that the file is what its name says",
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError("short file: it ends in its header", where=path, remedy=_RESTORE)
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise DataError(f"empty: its header announces {shape}", where=path, remedy=_RESTORE)
    return shape


def _read_into(file: io.BufferedIOBase, view: memoryview) -> int:
    """Fill `view` as far as the file goes; return the number of bytes."""
    done = 0
    while done < len(view) and (chunk := file.read(len(view) - done)):
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    return done


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Name the file that the system or gzip could not read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise DataError(f"damaged gzip file: {cause}", where=path, remedy=_RESTORE) from None
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror or cause}", where=path, remedy=_RESTORE
        ) from None

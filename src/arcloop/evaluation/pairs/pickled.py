"""Reads the pickle in a .bin file without running its code and without keeping its images.

The files of InsightFace contain a tuple of a list of encoded images and a list of flags. They were
written by Python 2 and 3 with any protocol; an image is a string of bytes or a NumPy array.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

from arcloop.errors import DataError

_KEPT_BYTES = 1024  # shorter byte strings are kept in memory
_REMEDY = "pass a verification set of InsightFace, such as lfw.bin"
_LENGTHS = {
    pickle.BINBYTES: "<I", pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES8: "<Q",
    pickle.BYTEARRAY8: "<Q", pickle.BINSTRING: "<i", pickle.SHORT_BINSTRING: "<B",
}  # fmt: skip
"""Operation that reads bytes -> format of their length."""


class Span(NamedTuple):
    """Position of bytes in a file.

    Attributes:
        start: Position of the first byte.
        size: Number of bytes.
    """

    start: int
    size: int


class NumpyArray:
    """An array in a pickle, whose values are not read.

    Attributes:
        dtype: Name of its type, such as "u1".
        data: Its values, bytes or a `Span`.
    """

    def __init__(self, data: Any = b"", dtype: Any = "") -> None:
        self.data = data
        self.dtype = dtype.decode() if isinstance(dtype, bytes) else str(dtype)


def read_pickle(file: Path) -> Any:
    """Return the object in a pickle of lists, numbers, strings and NumPy arrays.

    Byte strings of at least 1,024 bytes are returned as a `Span`, arrays as a `NumpyArray`, and
    NumPy's scalars as bool: whether they differ from zero.

    Raises:
        DataError: The file is not a pickle, or it contains objects of other classes.
    """
    try:
        with open(file, "rb") as content:
            return _Reader(content).load()
    except DataError as cause:
        raise DataError(cause.what, where=file, remedy=_REMEDY) from None
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror}", where=file, remedy="make it readable"
        ) from None
    except Exception as cause:  # noqa: BLE001 - damaged files cause exceptions of any type
        reason = f"{type(cause).__name__}: {cause}" if str(cause) else "it ends too early"
        raise DataError(f"it is not a pickle: {reason}", where=file, remedy=_REMEDY) from None


class _Reader(pickle._Unpickler):  # noqa: SLF001 - pickle.Unpickler is in C
    """Unpickler in Python, some of whose operations are replaced."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(
        pickle._Unpickler.dispatch  # noqa: SLF001
    )
    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")  # str of Python 2
        self._content, self._size = file, os.fstat(file.fileno()).st_size

    def find_class(self, module: str, name: str) -> Any:
        """Return the substitute for a class; its module is not imported."""
        if (found := _CLASSES.get((module.replace("._core.", ".core."), name))) is None:
            raise DataError(f"it contains an object of {module}.{name}, which is not allowed")
        return found

    def take_bytes(self, length: str) -> None:
        """Put the bytes that follow, or their position, on the stack."""
        (size,) = struct.unpack(length, self._content.read(struct.calcsize(length)))
        start = self._content.tell()
        if not 0 <= size <= self._size - start:
            raise EOFError
        if size < _KEPT_BYTES:
            self.append(self._content.read(size))
        else:
            self._content.seek(size, os.SEEK_CUR)
            self.append(Span(start, size))

    def skip_frame(self) -> None:
        """Skip the length of a frame, because frames would hide the positions in the file."""
        self._content.read(8)

    def set_state(self) -> None:
        """Set dtype and data of an array from its state; drop the state of other objects."""
        state = self.stack.pop()
        if isinstance(array := self.stack[-1], NumpyArray):
            _, _, array.dtype, _, array.data = state


def _take(length: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.take_bytes(length)


_Reader.dispatch |= {code[0]: _take(length) for code, length in _LENGTHS.items()}
_Reader.dispatch |= {pickle.FRAME[0]: _Reader.skip_frame, pickle.BUILD[0]: _Reader.set_state}


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that Python 3 wrote as text in Latin-1, for a protocol of Python 2."""
    if encoding != "latin1":
        raise ValueError(encoding)
    return text.encode(encoding)


_CLASSES: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): NumpyArray,
    ("numpy", "dtype"): lambda name, *_: name,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: NumpyArray(),
    ("numpy.core.multiarray", "scalar"): lambda _, data: any(data),
    ("numpy.core.numeric", "_frombuffer"): lambda data, dtype, *_: NumpyArray(data, dtype),
}

"""Source of training sets in MXNet's RecordIO format, as InsightFace publishes them for faces.

PREFIX.rec contains the records, PREFIX.idx the byte offset of each. A record consists of a magic
number, its length, a header (flag, label, two ids) and an encoded image; see `mx.recordio.pack`.
If the content contains the magic number at an aligned position, it is written in several parts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from arcloop.data.sources import existing_root
from arcloop.data.sources.decoding import ImageBlock
from arcloop.data.sources.picture_table import ImageList, PictureTable
from arcloop.data.sources.pictures import PictureSource, SourceFiles
from arcloop.errors import DataError
from arcloop.runtime.images import ImageError

Ints = npt.NDArray[np.int64]

_MAGIC = 0xCED7230A
_PART = struct.Struct("<II")  # magic number; the upper 3 bits: kind of the part, others: length
_HEADER = struct.Struct("<IfQQ")  # number of labels in the content, label, two ids
_LENGTH_BITS = 29
_WHOLE, _LAST = 0, 3  # kinds of a part; 1 and 2 are the first and a middle part of a record
_RESTORE = "download or write the file again"


@dataclass(kw_only=True)
class RecordIoSource(PictureSource):
    """Source that reads PREFIX.rec and PREFIX.idx; a class is an integer label.

    In the sets of InsightFace, the first record has no image. It contains the number of the first
    record after the images. The records from there on describe identities, and are not read.

    Attributes:
        root: Folder of the two files.
        prefix: Name of the files without extension.
    """

    appendable = False

    root: str
    prefix: str

    def fingerprint(self) -> str:
        """Hash the index, and the size and modification time of the records."""
        records, index = self._files()
        with open(index, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        info = records.stat()
        digest.update(f"{info.st_size} {info.st_mtime_ns}".encode())
        return digest.hexdigest()

    def read_files(self) -> SourceFiles:
        records, index = self._files()
        positions = _read_index(index)
        with open(records, "rb") as file:
            first, content = read_record(file, int(positions[0]))
            if len(first) == 2 and not content:
                positions = positions[1 : int(first[0])]
            labels = np.array(
                [read_record(file, position)[0][0] for position in positions.tolist()], np.int64
            )
        names, numbers = np.unique(labels, return_inverse=True)
        table = PictureTable(
            RecordList(records, positions), numbers, [str(name) for name in names], None, None
        )
        return SourceFiles(table, records.absolute(), "files of another source")

    def _files(self) -> tuple[Path, Path]:
        folder = existing_root(self.root)
        found = folder / f"{self.prefix}.rec", folder / f"{self.prefix}.idx"
        for file in found:
            if not file.is_file():
                raise DataError(
                    "there is no such file",
                    where=file.absolute(),
                    remedy="correct data.root or data.prefix",
                )
        return found


class RecordList(ImageList):
    """List of the images in a RecordIO file.

    Args:
        file: The records.
        positions: [N] position of each record in bytes.
    """

    def __init__(self, file: Path, positions: Ints) -> None:
        self.root, self._file, self._positions = str(file.parent), file, positions

    def __len__(self) -> int:
        return len(self._positions)

    def relative(self, number: int) -> bytes:
        return str(self._positions[number]).encode()

    def path(self, number: int) -> str:
        return f"{self._file} at byte {self._positions[number]}"

    def select(self, numbers: Ints) -> RecordList:
        return RecordList(self._file, self._positions[numbers])

    def block(self, numbers: Sequence[int], **fields: Any) -> ImageBlock:
        positions = self._positions[np.asarray(numbers, np.int64)].tolist()
        return RecordBlock(file=self._file, positions=positions, **fields)


@dataclass(frozen=True, kw_only=True)
class RecordBlock(ImageBlock):
    """Records to decode.

    Attributes:
        file: The records.
        positions: Position of each record in bytes.
    """

    file: Path
    positions: list[int]

    def name(self, number: int) -> str:
        return f"{self.file} at byte {self.positions[number]}"

    def read(self, number: int) -> tuple[bytes, tuple[int, int]]:
        with open(self.file, "rb") as records:
            try:
                _, content = read_record(records, self.positions[number])
            except DataError as cause:
                raise ImageError(cause.what) from None
        return content, (len(content), 0)


def read_record(file: BinaryIO, position: int) -> tuple[list[float], bytes]:
    """Read a record.

    Args:
        file: The records.
        position: Position of the record in bytes.

    Returns:
        Its labels, and the encoded image.

    Raises:
        DataError: There is no complete record.
    """
    file.seek(position)
    parts, kind = [], -1
    while kind not in (_WHOLE, _LAST):
        head = file.read(_PART.size)
        magic, value = _PART.unpack(head) if len(head) == _PART.size else (0, 0)
        if magic != _MAGIC:
            raise DataError(
                f"there is no record at byte {position}", where=file.name, remedy=_RESTORE
            )
        kind, length = value >> _LENGTH_BITS, value & ((1 << _LENGTH_BITS) - 1)
        parts.append(file.read(length))
        if len(parts[-1]) < length:
            raise DataError(
                f"short file: it ends in the record at byte {position}",
                where=file.name,
                remedy=_RESTORE,
            )
        file.seek(-length % 4, 1)
    content = _PART.pack(_MAGIC, 0)[:4].join(parts)
    if len(content) < _HEADER.size:
        raise DataError(
            f"the record at byte {position} has no header", where=file.name, remedy=_RESTORE
        )
    count, label, _, _ = _HEADER.unpack_from(content)
    end = _HEADER.size + 4 * count
    labels = [label] if count == 0 else list(np.frombuffer(content[_HEADER.size : end], "<f4"))
    return labels, content[end:]


def _read_index(file: Path) -> Ints:
    """Return the position of each record, in the order of their keys."""
    try:
        rows = np.loadtxt(file, np.int64, delimiter="\t", ndmin=2)
    except ValueError as cause:
        raise DataError(
            f"a line is not a key and a position with a tab between them: {cause}",
            where=file,
            remedy=_RESTORE,
        ) from None
    if not len(rows):
        raise DataError("the index is empty", where=file, remedy=_RESTORE)
    positions: Ints = rows[np.argsort(rows[:, 0], kind="stable"), 1]
    return positions

"""Lists of pairs of images, from .bin files of InsightFace and from CSV files.

Shapes: P pairs; images 2p and 2p + 1 are those of pair p.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.atomic import sha256_json
from arcloop.config.evaluation import pair_list_names
from arcloop.data.sources.csv_list import LineFaults
from arcloop.data.sources.picture_table import FileList
from arcloop.errors import ConfigError, DataError
from arcloop.evaluation.metrics.sample import FOLDS
from arcloop.evaluation.pairs.pickled import NumpyArray, Span, read_pickle
from arcloop.runtime.images import ImageError, size_of

_COLUMNS = ("path_1", "path_2", "same")


@dataclass(frozen=True)
class PairList:
    """Pairs of encoded images, of which only the positions are in memory.

    Attributes:
        name: Name in the metrics.
        file: The .bin or CSV file.
        same: bool [P], whether both images are of one class.
        read: Returns the encoded image of a number.
        describe: Returns the file, or place in the file, of the image of a number, for messages.
    """

    name: str
    file: Path
    same: npt.NDArray[np.bool_]
    read: Callable[[int], bytes]
    describe: Callable[[int], str]

    def sha256(self) -> str:
        """Check the headers of all images, and hash the images and the flags.

        Raises:
            DataError: An image is missing or is not an image.
        """
        digest = hashlib.sha256(self.same.tobytes())
        for number in range(2 * len(self.same)):
            try:
                content = self.read(number)
                size_of(content)
            except (OSError, ValueError, SyntaxError) as cause:
                raise self.image_error(number, cause) from None
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def image_error(self, number: int, cause: Exception) -> DataError:
        """Return the error of an image that cannot be decoded."""
        reason = str(cause) if isinstance(cause, ImageError) else f"cannot be read: {cause}"
        return DataError(
            f"{self.describe(number)}: {reason}", where=self.file,
            remedy="replace the image, or remove its pair",
        )  # fmt: skip


def open_pair_lists(files: Sequence[str]) -> list[PairList]:
    """Open the lists of `evaluate.pairs`.

    Raises:
        ConfigError: A file does not exist, or two lists have the same name.
        DataError: A list has faults, too few pairs, or pairs of one kind only.
    """
    return [
        _open_pair_list(Path(file), name)
        for file, name in zip(files, pair_list_names(files), strict=True)
    ]


def hash_pair_lists(files: Sequence[str]) -> str | None:
    """Check lists and the headers of all images, and hash names, images and flags; None: no list.

    Raises:
        ConfigError, DataError: See `open_pair_lists` and `PairList.sha256`.
    """
    if not files:
        return None
    return sha256_json([[pairs.name, pairs.sha256()] for pairs in open_pair_lists(files)])


def _open_pair_list(file: Path, name: str) -> PairList:
    """Open a list without decoding its images: CSV if the name ends in .csv, otherwise .bin."""
    if not file.is_file():
        raise ConfigError(
            "there is no such file", where=f"evaluate.pairs: {file}", remedy="correct the path"
        )
    found = (_open_csv if file.suffix.lower() == ".csv" else _open_bin)(file, name)
    count, same = len(found.same), int(found.same.sum())
    if count < FOLDS or same in (0, count):
        kinds = f"{count:,} pairs, {same:,} of them of the same class"
        raise DataError(
            f"it has {kinds}; {FOLDS} folds need at least {FOLDS} pairs, some of different classes",
            where=file,
            remedy="add pairs",
        )
    return found


def _open_bin(file: Path, name: str) -> PairList:
    content = read_pickle(file)
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise _fault(file, "it does not contain a list of images and a list of flags")
    images, flags = content[0], _read_flags(file, content[1])
    if not isinstance(images, list) or not isinstance(flags, list):
        raise _fault(file, "it does not contain a list of images and a list of flags")
    if len(images) % 2:
        raise _fault(file, f"it has an odd number of images: {len(images):,}")
    if 2 * len(flags) != len(images):
        raise _fault(file, f"it has {len(flags):,} flags for {len(images) // 2:,} pairs")
    if wrong := [n for n, flag in enumerate(flags) if flag not in (0, 1)]:
        raise _fault(file, f"flag {wrong[0] + 1} is neither true nor false")
    images = [image.data if isinstance(image, NumpyArray) else image for image in images]
    if wrong := [n for n, image in enumerate(images) if not isinstance(image, bytes | Span)]:
        raise _fault(file, f"image {wrong[0] + 1} is not a string of bytes")
    return PairList(
        name, file, np.array(flags, bool), lambda number: _read(file, images[number]),
        lambda number: f"image {number + 1} of {file.name}",
    )  # fmt: skip


def _read_flags(file: Path, flags: Any) -> Any:
    """Return the values of an array as a list; what is not an array is returned unchanged."""
    if not isinstance(flags, NumpyArray) or not re.fullmatch("[biu][1248]", flags.dtype):
        return flags
    return np.frombuffer(_read(file, flags.data), flags.dtype).tolist()


def _fault(file: Path, what: str) -> DataError:
    return DataError(what, where=file, remedy="pass a verification set of InsightFace")


def _read(file: Path, image: bytes | Span) -> bytes:
    if isinstance(image, bytes):
        return image
    with open(file, "rb") as content:
        content.seek(image.start)
        return content.read(image.size)


def _open_csv(file: Path, name: str) -> PairList:
    paths, same, faults = FileList(file.parent), bytearray(), LineFaults()
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            rows = csv.DictReader(text)
            if missing := set(_COLUMNS) - {*(rows.fieldnames or ())}:
                raise DataError(
                    f"columns are missing: {', '.join(sorted(missing))}", where=file,
                    remedy=f"name the columns in the first line: {','.join(_COLUMNS)}",
                )  # fmt: skip
            for row in rows:
                flag = (row["same"] or "").strip()
                if flag not in ("0", "1"):
                    faults.add("flags", rows.line_num, f"same is {flag!r}, not 0 or 1")
                same.append(flag == "1")
                for column in _COLUMNS[:2]:
                    paths.append(row[column] or "")
                    if not Path(path := paths.path(len(paths) - 1)).is_file():
                        faults.add("missing files", rows.line_num, f"no such file: {path}")
    except (UnicodeDecodeError, csv.Error) as cause:
        raise DataError(
            f"it is not CSV in UTF-8: {cause}", where=file, remedy="save it as CSV in UTF-8"
        ) from None
    faults.raise_if_any(file)
    flags = np.frombuffer(same, np.uint8).astype(bool)
    return PairList(name, file, flags, lambda number: Path(paths.path(number)).read_bytes(),
                    paths.path)  # fmt: skip

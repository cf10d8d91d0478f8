"""A CSV list of pictures, read row by row; all that is wrong with it is told at once."""

from __future__ import annotations

import csv
import difflib
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.base import SPLITS
from arcloop.data.sources.line_faults import LineFaults
from arcloop.errors import DataError

Ints = npt.NDArray[np.int64]


class Cells(NamedTuple):
    """A row: the line it ends on, what it says, and whether it has as many cells as the header."""

    line: int
    path: str
    label: str
    split: str | None
    whole: bool


@dataclass(frozen=True)
class Table:
    """What a file lists.

    Attributes:
        pictures: Where the pictures are.
        labels: [N] class of each, a position in `classes`.
        classes: Labels as they are written, sorted.
        splits: Split -> its pictures; None without such a column.
    """

    pictures: CsvPictures
    labels: npt.NDArray[np.int64]
    classes: list[str]
    splits: Mapping[str, Ints] | None


class CsvPictures:
    """Paths one after another in one piece of memory, a fraction of a list of str.

    Args:
        root: Folder that relative paths start from.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bytes, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, path: str) -> None:
        """Add one, as it is written."""
        self._bytes += path.encode()
        self._ends.append(len(self._bytes))

    def written(self, number: int) -> str:
        """Return a path as it is written."""
        start = self._ends[number - 1] if number else 0
        return self._bytes[start : self._ends[number]].decode()

    def path(self, number: int) -> str:
        """Return where a picture is."""
        return str(self._root / self.written(number))

    def paths(self, numbers: Ints) -> list[str]:
        return [self.path(number) for number in numbers.tolist()]

    def names(self, numbers: Ints) -> list[bytes]:
        return [self.written(number).encode() for number in numbers.tolist()]


def read_table(file: Path, root: Path, delimiter: str) -> Table:
    """Read a whole list.

    Memory: for each row its path and about 40 bytes.

    Args:
        file: The CSV file.
        root: Folder that relative paths start from.
        delimiter: What parts the columns.

    Raises:
        DataError: Columns or files are missing, a label is empty, a split is unknown, a path is
            listed twice: all of it in one message, with line numbers.
    """
    faults = LineFaults()
    pictures, lines, numbers = CsvPictures(root), array("q"), array("q")
    splits = array("b")
    label_numbers: dict[str, int] = {}
    for cells in read_cells(file, delimiter):
        _check_cells(cells, root, faults)
        pictures.append(cells.path)
        lines.append(cells.line)
        numbers.append(label_numbers.setdefault(cells.label, len(label_numbers)))
        if cells.split is not None:
            splits.append(SPLITS.index(cells.split) if cells.split in SPLITS else -1)
    if not len(lines):
        raise DataError("it lists no images", where=file.absolute(), remedy="add rows to it")
    names = list(label_numbers)
    of_label = np.frombuffer(numbers, np.int64)
    _report_repeated(pictures, np.frombuffer(lines, np.int64), of_label, names, faults)
    faults.fail(file)
    classes = sorted(names)
    position = {name: label for label, name in enumerate(classes)}
    label_of_number = np.array([position[name] for name in names])
    of_picture = np.frombuffer(splits, np.int8)
    return Table(
        pictures,
        label_of_number[of_label],
        classes,
        {split: np.flatnonzero(of_picture == n) for n, split in enumerate(SPLITS)}
        if len(splits)
        else None,
    )


def read_cells(file: Path, delimiter: str) -> Iterator[Cells]:
    """Read row by row.

    Raises:
        DataError: The columns are not there, or the file is no text in UTF-8.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            path, label, split = _columns(header, file, delimiter)
            for row in reader:
                if not row:
                    continue
                whole = len(row) == len(header)
                row += [""] * (len(header) - len(row))
                of_split = None if split is None else row[split].strip()
                yield Cells(reader.line_num, row[path], row[label].strip(), of_split, whole)
    except UnicodeDecodeError as cause:
        raise DataError(
            f"it is no text in UTF-8: {cause.reason} at byte {cause.start} of a block",
            where=file.absolute(),
            remedy="save it in UTF-8",
        ) from None
    except csv.Error as cause:
        raise DataError(
            f"it is no CSV: {cause}", where=f"{file.absolute()} line {reader.line_num}",
            remedy="close the quotes, or quote the cell",
        ) from None  # fmt: skip
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror}", where=file.absolute(), remedy="make it readable"
        ) from None


def _columns(header: list[str], file: Path, delimiter: str) -> tuple[int, int, int | None]:
    missing = [name for name in ("path", "label") if name not in header]
    twice = [name for name in ("path", "label", "split") if header.count(name) > 1]
    if not (missing or twice):
        split = header.index("split") if "split" in header else None
        return header.index("path"), header.index("label"), split
    faults = [f"there is no column {' and no column '.join(missing)}"] if missing else []
    faults += [f"column {name} is there twice" for name in twice]
    remedy = "name the columns in the first line: path,label or path,label,split"
    for other in {",", ";", "\t", "|"} - {delimiter}:
        if {"path", "label"} <= {name.strip() for name in other.join(header).split(other)}:
            remedy = f"pass data.delimiter={other!r}"
    raise DataError(
        f"{'; '.join(faults)}; there are: {', '.join(map(repr, header)) or 'none'}",
        where=f"{file.absolute()} line 1",
        remedy=remedy,
    )


def _check_cells(cells: Cells, root: Path, faults: LineFaults) -> None:
    line = cells.line
    if not cells.whole:
        faults.add("rows of another length", line, "has not as many cells as the header")
        return
    if not cells.label:
        faults.add("empty labels", line, "the label is empty")
    if cells.split is not None and cells.split not in SPLITS:
        near = difflib.get_close_matches(cells.split, SPLITS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        faults.add(
            "unknown splits", line, f"split {cells.split!r} is none of {', '.join(SPLITS)}{hint}"
        )
    if not cells.path:
        faults.add("empty paths", line, "the path is empty")
    elif not (path := root / cells.path).is_file():
        faults.add("missing files", line, f"there is no file {path}")


def _report_repeated(
    pictures: CsvPictures, lines: Ints, labels: Ints, names: list[str], faults: LineFaults
) -> None:
    """Report files that are listed more than once, however their paths are written."""
    places = (os.path.normpath(pictures.path(number)) for number in range(len(pictures)))
    hashes = np.fromiter(map(hash, places), np.int64, len(pictures))
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    first_of: dict[str, int] = {}
    for number in np.unique(np.concatenate([order[again], order[again + 1]])).tolist():
        if not pictures.written(number):
            continue
        first = first_of.setdefault(os.path.normpath(pictures.path(number)), number)
        if first == number:
            continue
        path, line = pictures.written(number), int(lines[number])
        if labels[first] == labels[number]:
            faults.add("repeated paths", line, f"{path} is on line {lines[first]} already")
        else:
            faults.add(
                "paths with two labels", line,
                f"{path} is {names[labels[number]]!r}, but {names[labels[first]]!r} on line"
                f" {lines[first]}",
            )  # fmt: skip

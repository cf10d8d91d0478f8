"""Source of image files that a CSV file lists, each with its label."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcloop.data.sources import Listing, existing_root
from arcloop.data.sources.pictures import FileList, PictureSource
from arcloop.data.splits import SPLITS
from arcloop.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]

_FAULTS_LISTED = 20  # per kind


@dataclass(kw_only=True)
class CsvSource(PictureSource):
    """Source that reads a CSV file with the columns `path`, `label` and optionally `split`.

    Other columns are ignored. Without `split`, images are assigned to the splits at random. With
    it, every row names its split (train, val, gallery or query); `split=disjoint` does not need
    rows of query.

    Attributes:
        file: The CSV file, in UTF-8.
        root: Folder that relative paths start from; None for the folder of the file.
        delimiter: The character between columns.
    """

    file: str
    root: str | None
    delimiter: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ConfigError(
                f"data.delimiter={self.delimiter!r} must be one character between columns",
                remedy="pass one character, e.g. data.delimiter=';'",
            )

    def fingerprint(self) -> str:
        """Hash the CSV file, and the sizes and modification times of the images."""
        file, root = self._locations()
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256")
        for row in read_rows(file, self.delimiter):
            try:
                stat = (root / row.path).stat()
                version = f"{stat.st_size} {stat.st_mtime_ns}"
            except (OSError, ValueError):  # reported when the source is opened
                version = "missing"
            digest.update(f"{version}\n".encode())
        return digest.hexdigest()

    def open(self) -> Listing:
        file, root = self._locations()
        table = read_table(file, root, self.delimiter)
        return self._make_listing(
            table.files,
            table.labels,
            table.classes,
            table.splits,
            where=file.absolute(),
            layout=f"a column split of {', '.join(SPLITS)}",
        )

    def _locations(self) -> tuple[Path, Path]:
        """Return the CSV file, and the folder that its paths start from."""
        file = Path(self.file)
        if not file.is_file():
            raise DataError(
                "there is no such file", where=file.absolute(), remedy="correct data.file"
            )
        return file, file.parent if self.root is None else existing_root(self.root)


class Row(NamedTuple):
    """A row of the file: number of its last line, its cells, and whether it has all columns."""

    line: int
    path: str
    label: str
    split: str | None
    is_complete: bool


@dataclass(frozen=True)
class Table:
    """Contents of a CSV file.

    Attributes:
        files: The image files, in the order of the rows.
        labels: [N] class of each, a position in `classes`.
        classes: Labels as they are written in the file, sorted.
        splits: Split -> numbers of its files; None without a column `split`.
    """

    files: FileList
    labels: Ints
    classes: list[str]
    splits: Mapping[str, Ints] | None


@dataclass
class LineFaults:
    """Faults in the lines of a file. The first of each kind are listed; all are counted."""

    listed: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, line: int, message: str) -> None:
        """Add a fault of a kind, e.g. "missing files"."""
        self.counts[kind] += 1
        if self.counts[kind] <= _FAULTS_LISTED:
            self.listed.append((line, message))

    def raise_if_any(self, file: Path) -> None:
        """Raise one `DataError` that lists the faults, if there are any."""
        if not self.counts:
            return
        lines = [f"line {line}: {message}" for line, message in sorted(self.listed)]
        lines += [
            f"and {count - _FAULTS_LISTED} more {kind}"
            for kind, count in self.counts.items()
            if count > _FAULTS_LISTED
        ]
        listed = "".join(f"\n    {line}" for line in lines)
        raise DataError(
            f"the list of images has {self.counts.total()} fault(s):{listed}",
            where=file.absolute(),
            remedy="correct these lines",
        )


def read_table(file: Path, root: Path, delimiter: str) -> Table:
    """Read and check a CSV file. Memory use per row is its path plus about 40 bytes.

    Args:
        file: The CSV file.
        root: Folder that relative paths start from.
        delimiter: The character between columns.

    Raises:
        DataError: Columns or image files are missing, a label is empty, a split is unknown, or a
            path is listed twice. One message lists all faults with their line numbers.
    """
    faults = LineFaults()
    files, lines, numbers, splits = FileList(root), array("q"), array("q"), array("b")
    label_numbers: dict[str, int] = {}
    for row in read_rows(file, delimiter):
        files.append(row.path)
        _check_row(row, files.path(len(files) - 1), faults)
        lines.append(row.line)
        numbers.append(label_numbers.setdefault(row.label, len(label_numbers)))
        if row.split is not None:
            splits.append(SPLITS.index(row.split) if row.split in SPLITS else -1)
    if not len(lines):
        raise DataError("it lists no images", where=file.absolute(), remedy="add rows to it")
    names, number_N = list(label_numbers), np.frombuffer(numbers, np.int64)
    _report_repeated(files, np.frombuffer(lines, np.int64), number_N, names, faults)
    faults.raise_if_any(file)
    classes = sorted(names)
    position_of = {name: position for position, name in enumerate(classes)}
    labels = np.array([position_of[name] for name in names])[number_N]
    split_N = np.frombuffer(splits, np.int8)
    given = {split: np.flatnonzero(split_N == n) for n, split in enumerate(SPLITS)}
    return Table(files, labels, classes, given if len(splits) else None)


def read_rows(file: Path, delimiter: str) -> Iterator[Row]:
    """Read a CSV file row by row.

    Raises:
        DataError: Columns are missing, or the file is not CSV in UTF-8.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            path, label, split = _find_columns(header, file, delimiter)
            for row in reader:
                if not row:
                    continue
                is_complete = len(row) == len(header)
                row += [""] * (len(header) - len(row))
                split_name = None if split is None else row[split].strip()
                yield Row(reader.line_num, row[path], row[label].strip(), split_name, is_complete)
    except UnicodeDecodeError as cause:
        raise DataError(
            f"it is not text in UTF-8: {cause.reason} at byte {cause.start} of a block",
            where=file.absolute(),
            remedy="save it in UTF-8",
        ) from None
    except csv.Error as cause:
        raise DataError(
            f"it is not CSV: {cause}", where=f"{file.absolute()} line {reader.line_num}",
            remedy="close the quotes, or quote the cell",
        ) from None  # fmt: skip
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror}", where=file.absolute(), remedy="make it readable"
        ) from None


def _find_columns(header: list[str], file: Path, delimiter: str) -> tuple[int, int, int | None]:
    """Return the positions of path, label and split."""
    faults = [f"column {name} is missing" for name in ("path", "label") if name not in header]
    faults += [
        f"column {name} occurs twice"
        for name in ("path", "label", "split")
        if header.count(name) > 1
    ]
    if not faults:
        split = header.index("split") if "split" in header else None
        return header.index("path"), header.index("label"), split
    remedy = "name the columns in the first line: path,label or path,label,split"
    for other in {",", ";", "\t", "|"} - {delimiter}:
        if {"path", "label"} <= {name.strip() for name in other.join(header).split(other)}:
            remedy = f"pass data.delimiter={other!r}"
    raise DataError(
        f"{'; '.join(faults)}; the columns are: {', '.join(map(repr, header)) or 'none'}",
        where=f"{file.absolute()} line 1",
        remedy=remedy,
    )


def _check_row(row: Row, file: str, faults: LineFaults) -> None:
    if not row.is_complete:
        faults.add("rows of another length", row.line, "has another number of cells than line 1")
        return
    if not row.label:
        faults.add("empty labels", row.line, "the label is empty")
    if row.split is not None and row.split not in SPLITS:
        near = difflib.get_close_matches(row.split, SPLITS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(SPLITS)
        faults.add("unknown splits", row.line, f"split {row.split!r} is none of {known}{hint}")
    if not row.path:
        faults.add("empty paths", row.line, "the path is empty")
    elif not os.path.isfile(file):  # noqa: PTH113 - a Path interns each of millions of names
        faults.add("missing files", row.line, f"there is no file {file}")


def _report_repeated(
    files: FileList, lines: Ints, labels: Ints, names: list[str], faults: LineFaults
) -> None:
    """Report files that are listed more than once, even if their paths are spelled differently."""
    # Hashes are compared first, which needs a fraction of the memory of a set of all paths.
    paths = (os.path.normpath(files.path(number)) for number in range(len(files)))
    hashes = np.fromiter(map(hash, paths), np.int64, len(files))
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    first_of: dict[str, int] = {}
    for number in np.unique(np.concatenate([order[equal], order[equal + 1]])).tolist():
        path, line = os.fsdecode(files.relative(number)), int(lines[number])
        if not path:
            continue
        first = first_of.setdefault(os.path.normpath(files.path(number)), number)
        if first == number:
            continue
        if labels[first] == labels[number]:
            faults.add("repeated paths", line, f"{path} is already on line {lines[first]}")
        else:
            label, other = names[labels[number]], names[labels[first]]
            message = f"{path} is {label!r}, but {other!r} on line {lines[first]}"
            faults.add("paths with two labels", line, message)

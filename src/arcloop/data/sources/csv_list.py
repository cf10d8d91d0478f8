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

import numpy as np
import numpy.typing as npt

from arcloop.data.sources import existing_root
from arcloop.data.sources.picture_table import FileList, Groups, PictureTable
from arcloop.data.sources.pictures import PictureSource, SourceFiles
from arcloop.data.splits import SPLITS
from arcloop.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]

_FAULTS_LISTED = 20  # per kind
_TAB = r"\t"
"""Spelling of a tab in `delimiter`, because a tab is hard to type in a shell."""


@dataclass(kw_only=True)
class CsvSource(PictureSource):
    r"""Source that reads a CSV file with `path`, `label` and optionally `split` and `group`.

    Other columns are ignored. Without `split`, images are assigned to the splits at random. With
    it, every row names its split (train, val, gallery or query); `split=disjoint` does not need
    rows of query. With `group`, e.g. the video or session of an image, splits that are drawn keep
    the images of a group together; an image with an empty cell is a group of its own.

    Attributes:
        file: The CSV file, in UTF-8.
        root: Folder to which paths in the file are relative; None for the folder of the file.
        delimiter: The character between columns; "\t" is a tab.
    """

    file: str
    root: str | None
    delimiter: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delimiter == _TAB:
            self.delimiter = "\t"
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            from arcloop.config.composition import quote_override  # imports Hydra

            raise ConfigError(
                f"data.delimiter={self.delimiter!r} must be one character between columns",
                remedy=f"pass one character, e.g. {quote_override('data.delimiter', ';')}, or"
                f" {quote_override('data.delimiter', _TAB)} for a tab",
            )

    def fingerprint(self) -> str:
        """Hash the CSV file, and the sizes and modification times of the images."""
        file, root = self._locations()
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256")
        for _, cells in read_rows(file, self.delimiter):
            try:
                stat = (root / cells.get("path", "")).stat()
                version = f"{stat.st_size} {stat.st_mtime_ns}"
            except (OSError, ValueError):  # reported when the source is opened
                version = "missing"
            digest.update(f"{version}\n".encode())
        return digest.hexdigest()

    def read_files(self) -> SourceFiles:
        file, root = self._locations()
        return SourceFiles(
            read_table(file, root, self.delimiter),
            where=file.absolute(),
            layout=f"a column split of {', '.join(SPLITS)}",
        )

    def _locations(self) -> tuple[Path, Path]:
        """Return the CSV file, and the folder to which its paths are relative."""
        file = Path(self.file)
        if not file.is_file():
            raise DataError(
                "there is no such file", where=file.absolute(), remedy="correct data.file"
            )
        return file, file.parent if self.root is None else existing_root(self.root)


@dataclass
class LineFaults:
    """Collects the faults of a file by line; lists the first of each kind, and counts all."""

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


def read_table(file: Path, root: Path, delimiter: str) -> PictureTable:
    """Read and check a CSV file. Memory use per row is its path plus about 100 bytes.

    Args:
        file: The CSV file.
        root: Folder to which paths are relative.
        delimiter: The character between columns.

    Returns:
        The image files, in the order of the rows. The classes are the labels in the file, sorted.

    Raises:
        DataError: Columns or image files are missing, a label is empty, a split is unknown, or a
            path is listed twice. One message lists all faults with their line numbers.
    """
    faults = LineFaults()
    files, lines, numbers, splits = FileList(root), array("q"), array("q"), array("b")
    label_numbers: dict[str, int] = {}
    groups, group_numbers = array("q"), {"": 0}
    for line, cells in read_rows(file, delimiter):
        if not cells:
            kind, message = "rows of another length", "has another number of cells than line 1"
            faults.add(kind, line, message)
            continue
        files.append(cells["path"])
        _check_row(line, cells, files.path(len(files) - 1), faults)
        lines.append(line)
        numbers.append(label_numbers.setdefault(cells["label"], len(label_numbers)))
        if "split" in cells:
            splits.append(SPLITS.index(cells["split"]) if cells["split"] in SPLITS else -1)
        if "group" in cells:
            groups.append(group_numbers.setdefault(cells["group"], len(group_numbers)))
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
    return PictureTable(
        files,
        labels,
        classes,
        given if len(splits) else None,
        Groups.from_order_of_names(groups, group_numbers) if len(groups) else None,
    )


def read_rows(file: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV file row by row.

    Yields:
        Number of the last line of the row, and column -> cell; the cells of label, split and group
        are stripped. The cells are empty if their number is not that of the header.

    Raises:
        DataError: Columns are missing, or the file is not CSV in UTF-8.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            _check_columns(header, file, delimiter)
            for row in filter(None, reader):
                cells = dict(zip(header, row, strict=False)) if len(row) == len(header) else {}
                for name in {"label", "split", "group"} & cells.keys():
                    cells[name] = cells[name].strip()
                yield reader.line_num, cells
    except UnicodeDecodeError as cause:
        raise DataError(
            f"it is not text in UTF-8: {cause.reason}",
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


def _check_columns(header: list[str], file: Path, delimiter: str) -> None:
    faults = [f"column {name} is missing" for name in ("path", "label") if name not in header]
    faults += [
        f"column {name} occurs twice"
        for name in ("path", "label", "split", "group")
        if header.count(name) > 1
    ]
    if not faults:
        return
    remedy = "name the columns in the first line: path,label and optionally split and group"
    from arcloop.config.composition import quote_override  # imports Hydra

    for other in sorted({",", ";", "\t", "|"} - {delimiter}):
        if {"path", "label"} <= {name.strip() for name in other.join(header).split(other)}:
            value = _TAB if other == "\t" else other
            remedy = f"pass {quote_override('data.delimiter', value)}"
    raise DataError(
        f"{'; '.join(faults)}; the columns are: {', '.join(map(repr, header)) or 'none'}",
        where=f"{file.absolute()} line 1",
        remedy=remedy,
    )


def _check_row(line: int, cells: Mapping[str, str], file: str, faults: LineFaults) -> None:
    if not cells["label"]:
        faults.add("empty labels", line, "the label is empty")
    if (split := cells.get("split")) is not None and split not in SPLITS:
        near = difflib.get_close_matches(split, SPLITS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        faults.add(
            "unknown splits", line, f"split {split!r} is not one of {', '.join(SPLITS)}{hint}"
        )
    if not cells["path"]:
        faults.add("empty paths", line, "the path is empty")
    elif not os.path.isfile(file):  # noqa: PTH113 - pathlib interns the parts of every path
        faults.add("missing files", line, f"there is no file {file}")


def _report_repeated(
    files: FileList, lines: Ints, labels: Ints, names: list[str], faults: LineFaults
) -> None:
    """Report files that are listed more than once, even if their paths are spelled differently."""
    # Compare hashes first: they need much less memory than a set of all paths.
    paths = (os.path.normpath(files.path(number)) for number in range(len(files)))
    hashes = np.fromiter(map(hash, paths), np.int64, len(files))
    _, first_rows, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first_N = first_rows[inverse]
    for number in np.flatnonzero(first_N != np.arange(len(files))).tolist():
        path, first = os.fsdecode(files.relative(number)), int(first_N[number])
        if not path or os.path.normpath(files.path(first)) != os.path.normpath(files.path(number)):
            continue
        if labels[first] == labels[number]:
            message = f"{path} is already on line {lines[first]}"
            faults.add("repeated paths", int(lines[number]), message)
        else:
            label, other = names[labels[number]], names[labels[first]]
            message = f"{path} is {label!r}, but {other!r} on line {lines[first]}"
            faults.add("paths with two labels", int(lines[number]), message)

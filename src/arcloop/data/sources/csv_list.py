"""Source of image files that a CSV or Parquet file lists, each with its label."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.data.sources import existing_root
from arcloop.data.sources.list_rows import READ_COLUMNS, TAB, is_parquet, read_rows
from arcloop.data.sources.picture_table import FileList, Groups, PictureTable
from arcloop.data.sources.pictures import PictureSource, SourceFiles
from arcloop.data.splits import SPLITS
from arcloop.errors import ConfigError, DataError
from arcloop.runtime.regions import BOX, COLUMNS, LANDMARKS

Ints = npt.NDArray[np.int64]

_FAULTS_LISTED = 20  # per kind


@dataclass(kw_only=True)
class CsvSource(PictureSource):
    r"""Source of a list with `path`, `label`, and optionally `split`, `group` and regions.

    Without `split`, images are assigned to the splits at random. With it, every row names its split
    (train, val, gallery or query); `split=disjoint` does not need rows of query. With `group`, e.g.
    the video or session of an image, splits that are drawn keep the images of a group together; an
    image with an empty cell is a group of its own. With the columns of a box or of landmarks, see
    `arcloop.runtime.regions`, an image is a part of a file. Other columns are stored as metadata.

    Attributes:
        file: A CSV file in UTF-8, or a Parquet file (.parquet or .pq).
        root: Folder to which paths in the file are relative; None for the folder of the file.
        delimiter: The character between columns of a CSV file; "\t" is a tab.
    """

    file: str
    root: str | None
    delimiter: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delimiter == TAB:
            self.delimiter = "\t"
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            from arcloop.config.composition import quote_override  # imports Hydra

            raise ConfigError(
                f"data.delimiter={self.delimiter!r} must be one character between columns",
                remedy=f"pass one character, e.g. {quote_override('data.delimiter', ';')}, or"
                f" {quote_override('data.delimiter', TAB)} for a tab",
            )

    def fingerprint(self) -> str:
        """Hash the list, and the sizes and modification times of the images."""
        file, root = self._locations()
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256")
        cells: Mapping[str, str] = {}
        for _, cells in read_rows(file, self.delimiter):
            try:
                stat = (root / cells.get("path", "")).stat()
                version = f"{stat.st_size} {stat.st_mtime_ns}"
            except (OSError, ValueError):  # reported when the source is opened
                version = "missing"
            digest.update(f"{version}\n".encode())
        if not cells.keys().isdisjoint(COLUMNS):  # stores of earlier versions have whole images
            digest.update(b"regions")
        return digest.hexdigest()

    def read_files(self) -> SourceFiles:
        file, root = self._locations()
        return SourceFiles(
            read_table(file, root, self.delimiter),
            where=file.absolute(),
            layout=f"a column split of {', '.join(SPLITS)}",
        )

    def _locations(self) -> tuple[Path, Path]:
        """Return the list, and the folder to which its paths are relative."""
        file = Path(self.file)
        if not file.is_file():
            raise DataError(
                "there is no such file", where=file.absolute(), remedy="correct data.file"
            )
        return file, file.parent if self.root is None else existing_root(self.root)


@dataclass
class LineFaults:
    """Collects the faults of a file by line; lists the first of each kind, and counts all.

    Attributes:
        unit: What is numbered: "line", or "row" in a Parquet file.
        listed: Number of the line, and message, of each listed fault.
        counts: Kind -> number of faults.
    """

    unit: str = "line"
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
        lines = [f"{self.unit} {line}: {message}" for line, message in sorted(self.listed)]
        lines += [
            f"and {count - _FAULTS_LISTED} more {kind}"
            for kind, count in self.counts.items()
            if count > _FAULTS_LISTED
        ]
        listed = "".join(f"\n    {line}" for line in lines)
        raise DataError(
            f"the list of images has {self.counts.total()} fault(s):{listed}",
            where=file.absolute(),
            remedy=f"correct these {self.unit}s",
        )


def read_table(file: Path, root: Path, delimiter: str) -> PictureTable:
    """Read and check a list. Memory use per row is its path and metadata plus about 100 bytes.

    Args:
        file: The CSV or Parquet file.
        root: Folder to which paths are relative.
        delimiter: The character between columns.

    Returns:
        The image files, in the order of the rows. The classes are the labels in the file, sorted.

    Raises:
        DataError: Columns or image files are missing, a label is empty, a split is unknown, a path
            or a region of it is listed twice, or coordinates are wrong. One message lists all
            faults with their line numbers.
    """
    faults = LineFaults("row" if is_parquet(file) else "line")
    files, lines, numbers, splits = FileList(root), array("q"), array("q"), array("b")
    label_numbers: dict[str, int] = {}
    groups, group_numbers = array("q"), {"": 0}
    for line, cells in read_rows(file, delimiter):
        if not cells:
            kind, message = "rows of another length", "has another number of cells than line 1"
            faults.add(kind, line, message)
            continue
        extra = {name: cells[name] for name in cells if name and name not in READ_COLUMNS}
        files.append(
            cells["path"],
            _read_region(line, cells, faults),
            line,
            json.dumps(extra, ensure_ascii=False).encode() if extra else None,
        )
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
    if not faults.counts["coordinates"]:
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


def _read_region(line: int, cells: Mapping[str, str], faults: LineFaults) -> list[float]:
    """Return the values of `COLUMNS`, NaN for empty cells; empty if the list has no such column."""
    if cells.keys().isdisjoint(COLUMNS):
        return []
    values: list[float] = []
    for names in (BOX, LANDMARKS):
        texts = [cells.get(name, "").strip() for name in names]
        numbers = [_to_number(text) for text in texts]
        if any(texts) and not all(map(math.isfinite, numbers)):
            for name, text, number in zip(names, texts, numbers, strict=True):
                if not math.isfinite(number):
                    faults.add("coordinates", line, f"{name}={text!r} is not a number")
            numbers = [math.nan] * len(names)
        values += numbers
    for low, high in (("x_1", "x_2"), ("y_1", "y_2")):
        start, end = (values[BOX.index(name)] for name in (low, high))
        if start < -0.5:
            faults.add("boxes", line, f"{low}={start:g} is outside the image")
        if end - start < 1:
            message = f"the box is empty: {high}={end:g} is not greater than {low}={start:g}"
            faults.add("boxes", line, message)
    points = values[len(BOX) :]
    if math.isfinite(points[0]) and max(np.ptp(points[::2]), np.ptp(points[1::2])) < 1:
        faults.add("landmarks", line, "all landmarks are at one point")
    return values


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _report_repeated(
    files: FileList, lines: Ints, labels: Ints, names: list[str], faults: LineFaults
) -> None:
    """Report images that are listed more than once, even if their paths are spelled differently."""
    # Compare hashes first: they need much less memory than a set of all paths.
    paths = (os.path.normpath(files.name(number)) for number in range(len(files)))
    hashes = np.fromiter(map(hash, paths), np.int64, len(files))
    _, first_rows, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first_N = first_rows[inverse]
    for number in np.flatnonzero(first_N != np.arange(len(files))).tolist():
        path, first = os.fsdecode(files.relative(number)), int(first_N[number])
        if not path or os.path.normpath(files.name(first)) != os.path.normpath(files.name(number)):
            continue
        if labels[first] == labels[number]:
            message = f"{path} is already on {faults.unit} {lines[first]}"
            faults.add("repeated paths", int(lines[number]), message)
        else:
            label, other = names[labels[number]], names[labels[first]]
            message = f"{path} is {label!r}, but {other!r} on {faults.unit} {lines[first]}"
            faults.add("paths with two labels", int(lines[number]), message)

"""Reads the rows of a list of images, which is a CSV or a Parquet file."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from arcloop.errors import DataError
from arcloop.runtime.regions import BOX, LANDMARKS

TAB = r"\t"
"""Spelling of a tab in `delimiter`, because a tab is hard to type in a shell."""
READ_COLUMNS = ("path", "label", "split", "group", *BOX, *LANDMARKS)
"""Columns with a meaning; others are metadata."""
_PARQUET_ROWS = 4096  # in memory at a time


def is_parquet(file: Path) -> bool:
    """Return whether the name of a list is that of a Parquet file."""
    return file.suffix.lower() in (".parquet", ".pq")


def read_rows(file: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a list row by row.

    Yields:
        Number of the last line of the row (in a Parquet file: of the row, from 1), and column ->
        cell, where label, split and group are stripped. The mapping is empty if the row has another
        number of cells than the header.

    Raises:
        DataError: Columns are missing, the file is not CSV in UTF-8 or not Parquet, or pyarrow is
            missing.
    """
    rows = _read_parquet(file) if is_parquet(file) else _read_csv(file, delimiter)
    for line, cells in rows:
        for name in {"label", "split", "group"} & cells.keys():
            cells[name] = cells[name].strip()
        yield line, cells


def _read_csv(file: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            reader = csv.reader(text, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            _check_columns(header, file, delimiter)
            for row in filter(None, reader):
                cells = dict(zip(header, row, strict=False)) if len(row) == len(header) else {}
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


def _read_parquet(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            "reading a Parquet file needs pyarrow",
            where=file.absolute(),
            remedy="pip install 'arcloop[parquet]', or save the list as CSV",
        ) from None
    try:
        with pq.ParquetFile(file) as content:
            schema = content.schema_arrow
            _check_columns(schema.names, file, ",")
            columns = [
                field.name
                for field in schema
                if not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)
            ]
            batches = content.iter_batches(_PARQUET_ROWS, columns=columns)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, row in enumerate(rows, 1):
                yield number, {name: _to_text(value) for name, value in row.items()}
    except (pa.ArrowException, OSError) as cause:
        raise DataError(
            f"it is not a Parquet file: {cause}", where=file.absolute(), remedy="save it again"
        ) from None


def _to_text(value: object) -> str:
    # A missing number is null, or NaN if pandas wrote the file.
    return "" if value is None or value != value else str(value)


def _check_columns(header: Sequence[str], file: Path, delimiter: str) -> None:
    faults = [f"column {name} is missing" for name in ("path", "label") if name not in header]
    faults += [f"column {name} occurs twice" for name in READ_COLUMNS if header.count(name) > 1]
    for names in (BOX, LANDMARKS):
        missing = [name for name in names if name not in header]
        if missing and len(missing) < len(names):
            given = ", ".join(name for name in names if name in header)
            faults.append(f"of the columns {', '.join(names)}, only {given} are given")
    if not faults:
        return
    remedy = "name the columns path, label and optionally split and group"
    from arcloop.config.composition import quote_override  # imports Hydra

    for other in sorted({",", ";", "\t", "|"} - {delimiter}):
        if {"path", "label"} <= {name.strip() for name in other.join(header).split(other)}:
            value = TAB if other == "\t" else other
            remedy = f"pass {quote_override('data.delimiter', value)}"
    raise DataError(
        f"{'; '.join(faults)}; the columns are: {', '.join(map(repr, header)) or 'none'}",
        where=file.absolute() if is_parquet(file) else f"{file.absolute()} line 1",
        remedy=remedy,
    )

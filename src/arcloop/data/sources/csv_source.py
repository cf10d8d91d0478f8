"""Source: pictures that a CSV file lists, each with its label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from arcloop.data.sources.base import SPLITS, Listing, existing_root
from arcloop.data.sources.csv_table import read_cells, read_table
from arcloop.data.sources.picture_listing import MANY, SLICE_ROWS
from arcloop.data.sources.picture_source import PictureSource
from arcloop.errors import ConfigError, DataError

_BLOCK = 1 << 20
_ROW_BYTES = 100  # seldom more


@dataclass(kw_only=True)
class CsvSource(PictureSource):
    """A file with a header: `path` and `label`, and maybe `split`; other columns are passed over.

    Without `split`, pictures are split here. With it, every row names its split (train, val,
    gallery, query); with `split=disjoint`, there may be no row of query.

    Attributes:
        file: The CSV file, in UTF-8.
        root: Folder that relative paths start from; None: the folder of the file.
        delimiter: What parts the columns, one character.
    """

    file: str
    root: str | None
    delimiter: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ConfigError(
                f"data.delimiter={self.delimiter!r} is not one character that parts columns",
                remedy="pass one, e.g. data.delimiter=';'",
            )

    def fingerprint(self) -> str:
        """Hash the file, and sizes and times of change of the pictures, which are not read."""
        file, root = self._places()
        digest = hashlib.sha256()
        with open(file, "rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
        for cells in read_cells(file, self.delimiter):
            digest.update(f"{_version(root / cells.path)}\n".encode())
        return digest.hexdigest()

    def likely_tasks(self) -> int:
        file, _ = self._places()
        return MANY // SLICE_ROWS if file.stat().st_size > MANY * _ROW_BYTES else 0

    def open(self) -> Listing:
        file, root = self._places()
        table = read_table(file, root, self.delimiter)
        return self._listing(
            table.pictures,
            table.labels,
            table.classes,
            table.splits,
            where=file.absolute(),
            layout=f"a column split of {', '.join(SPLITS)}",
        )

    def _places(self) -> tuple[Path, Path]:
        """Return the file, and the folder that its paths start from."""
        file = Path(self.file)
        if not file.is_file():
            raise DataError(
                "there is no such file", where=file.absolute(), remedy="correct data.file"
            )
        return file, file.parent if self.root is None else existing_root(self.root)


def _version(path: Path) -> str:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # told of when the source is opened
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"

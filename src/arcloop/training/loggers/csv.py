"""Logger for metrics.csv: one row per step, continued when a run is resumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning.utilities import rank_zero_only

from arcloop.artifacts.atomic import write_bytes
from arcloop.training.loggers.tracking import RunLogger


class CsvLogger(RunLogger):
    """Writes metrics to a CSV file, which a resumed run continues.

    Lightning's CSVLogger deletes an existing file. This logger keeps the rows of all steps that the
    checkpoint contains.

    Args:
        path: Path of the file.
    """

    service: ClassVar[str] = "csv"

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._rows: dict[int, dict[str, str]] = {}

    @rank_zero_only
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Read the rows of the steps before `step` from an existing file."""
        if self._path.is_file():
            with open(self._path, newline="", encoding="utf-8") as file:
                self._rows = {
                    int(row.pop("step")): {name: value for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                    if int(row["step"]) < step
                }

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(step or 0, {})
        row.update({name: repr(float(value)) for name, value in metrics.items()})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write all rows to the file."""
        if not self._rows:
            return
        names = sorted({name for row in self._rows.values() for name in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, text.getvalue().encode())

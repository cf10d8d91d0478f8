"""metrics.csv: one row a step, appended, and carried over a resume."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from arcloop.artifacts.atomic import write_bytes
from arcloop.training.loggers.run_logger import RunLogger


class CsvLogger(RunLogger):
    """Writes what is logged to a file that a resumed run goes on with.

    Lightning's own CSVLogger deletes the file of an earlier start. This one keeps its rows of
    the steps before the one at which training goes on.

    Args:
        path: The file.
    """

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._rows: dict[int, dict[str, str]] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Take over the rows of an earlier start, of the steps done when its checkpoint was saved.

        Args:
            config: The run's config.yaml holds it.
            step: How many they are; they count from 0.
        """
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
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: the run's config.yaml holds them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write all rows so far, for a checkpoint must not be ahead of the file."""
        if self._rows:
            self._write()

    def _write(self) -> None:
        names = sorted({name for row in self._rows.values() for name in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path, text.getvalue().encode())

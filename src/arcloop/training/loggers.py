"""The loggers' base classes, and the logger for metrics.csv.

After resuming, a logger continues its file or its run in the tracking service. Every row is written
once.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from arcloop.artifacts.atomic import write_bytes, write_json
from arcloop.artifacts.metrics import FILE, read_metrics
from arcloop.display.terminal import print_line
from arcloop.errors import (
    ArcloopError,
    ResourceError,
    TrainingPruned,
    first_line,
)

Row = dict[str, float]

RUN_ID_FILES = (".mlflow.json", ".wandb.json")
"""Files that store the id of the run in each tracking service; deleted on overwrite=true."""
_FILES = ("model.pt", "config.yaml", "metrics.csv", "index/[!.]*", "evaluation/[!.]*")
_EVALUATION = "evaluation"


class Outcome(Enum):
    """How the training of a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PRUNED = "pruned"

    @classmethod
    def of(cls, status: str) -> Outcome:
        """Return the outcome for the argument of `finalize`.

        Lightning calls `finalize("failed")` for every exception, while it handles the exception.
        """
        if status == "success":
            return cls.FINISHED
        cause = sys.exception()
        if isinstance(cause, KeyboardInterrupt):
            return cls.INTERRUPTED
        return cls.PRUNED if isinstance(cause, TrainingPruned) else cls.FAILED


class RunLogger(Logger):
    """Lightning logger that collects rows of metrics, which `flush` writes before a checkpoint."""

    service: ClassVar[str]
    """Name of the service or format."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[int, Row] = {}

    @property
    def name(self) -> str:
        return self.service

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: `begin` receives the complete config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(step or 0, {})
        row.update({name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()

    @abstractmethod
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Called on rank zero before training starts or resumes.

        Args:
            config: The resolved config.
            step: Completed optimizer steps of the checkpoint that training resumes from, or 0.
        """

    @abstractmethod
    def flush(self) -> None:
        """Write everything logged so far; does nothing on ranks other than zero."""


class CsvLogger(RunLogger):
    """Writes metrics to a CSV file with one row per step, which a resumed run continues.

    Lightning's CSVLogger deletes an existing file. This logger keeps the rows of all steps that the
    checkpoint contains.

    Args:
        path: Path of the file.
    """

    service: ClassVar[str] = "csv"

    def __init__(self, *, path: str) -> None:
        super().__init__()
        self._path = Path(path)

    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Read the rows of the steps before `step` from an existing file."""
        if self._path.is_file():
            with open(self._path, newline="", encoding="utf-8") as file:
                self._rows = {
                    int(row.pop("step")): {n: float(value) for n, value in row.items() if value}
                    for row in csv.DictReader(file)
                    if int(row["step"]) < step
                }

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


class TrackingLogger(RunLogger):
    """Sends metrics with every checkpoint, and the run's files at the end.

    After resuming, the metrics are added to the same run in the service. The last step that was
    sent is recorded in the run folder, so no row is sent twice. If the service cannot be reached at
    the start, training does not start. If a later request fails, a warning is printed and the rows
    are sent with the next checkpoint.

    Args:
        run_dir: Folder of the run.
    """

    def __init__(self, *, run_dir: str) -> None:
        super().__init__()
        self._run_dir = Path(run_dir)
        self._id_file = self._run_dir / f".{self.service}.json"
        self._sent_before = -1
        self._id: str | None = None

    @property
    def version(self) -> str:
        return self._id or ""

    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Open the run that an earlier start created in the service, or create a new one.

        Raises:
            ResourceError: The service cannot be reached or rejects the request.
        """
        self._rows.clear()
        known, self._sent_before = None, -1
        with contextlib.suppress(OSError, ValueError, KeyError):
            content = json.loads(self._id_file.read_bytes())
            known, self._sent_before = str(content["id"]), int(content["sent"])
        try:
            self._id = self._open(config, known)
        except ArcloopError:
            raise
        except Exception as cause:  # clients raise many types without a common base
            raise ResourceError(
                f"{self.service} cannot be used: {first_line(cause)}",
                where=f"logger.{self.service}",
                remedy="correct its address or login, or choose logger=default",
            ) from cause
        self._record_sent(self._sent_before)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if (step or 0) > self._sent_before:
            super().log_metrics(metrics, step)

    def flush(self) -> None:
        if self._rows and self._try(self._send, dict(sorted(self._rows.items()))):
            self._record_sent(max(self._rows))
            self._rows.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._id is None:
            return
        outcome = Outcome.of(status)
        self.flush()
        if outcome is Outcome.FINISHED:
            found = self._run_dir / _EVALUATION
            metrics = read_metrics(found) if (found / FILE).is_file() else {}
            self._try(self._send_results, {f"evaluation/{n}": float(v) for n, v in metrics.items()})
        self._try(self._close, outcome)
        self._id = None

    def _files(self) -> list[str]:
        """Return the relative paths of model, config, metrics, index and evaluation."""
        found = (path for pattern in _FILES for path in sorted(self._run_dir.glob(pattern)))
        return [path.relative_to(self._run_dir).as_posix() for path in found]

    def _try(self, request: Callable[..., None], *args: Any) -> bool:
        """Return whether a request succeeded; prints a warning if it failed."""
        try:
            request(*args)
        except Exception as cause:  # noqa: BLE001 - a failing service must not stop the training
            print_line(f"warning: {self.service}: {first_line(cause)}")
            return False
        return True

    def _record_sent(self, step: int) -> None:
        write_json(self._id_file, {"id": self._id, "sent": step})

    @abstractmethod
    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        """Open the run with the id `known`, or create a new one, and return its id."""

    @abstractmethod
    def _send(self, rows: Mapping[int, Row]) -> None:
        """Send rows of metrics, keyed by step."""

    @abstractmethod
    def _send_results(self, metrics: Row) -> None:
        """Send metrics that do not belong to a step, and the files of the run."""

    @abstractmethod
    def _close(self, outcome: Outcome) -> None:
        """Record in the service how the run ended."""

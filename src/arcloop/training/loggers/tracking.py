"""Base classes of the loggers.

Each run has one run in a tracking service, also after resuming, and every row is sent once.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from arcloop.artifacts.atomic import write_json
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ResourceError

Row = dict[str, float]

RUN_ID_FILES = (".mlflow.json", ".wandb.json")
"""Files that store the id of the run in each tracking service; deleted on overwrite=true."""
_FILES = ("model.pt", "config.yaml", "metrics.csv", "index/[!.]*", "evaluation/[!.]*")
_METRICS = "evaluation/metrics.json"


class RunLogger(Logger):
    """Lightning logger with two additional hooks: the start of training, and a checkpoint."""

    service: ClassVar[str]
    """Name of the service or format."""

    @property
    def name(self) -> str:
        return self.service

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: `begin` receives the complete config."""

    @abstractmethod
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Called on rank zero before training starts or resumes.

        Args:
            config: The resolved config.
            step: Completed optimizer steps of the checkpoint that training resumes from, or 0.
        """

    @abstractmethod
    def flush(self) -> None:
        """Write everything logged so far; called before each checkpoint."""


class TrackingLogger(RunLogger):
    """Sends metrics with every checkpoint, and the run's files at the end.

    After resuming, the metrics are added to the same run in the service. The last step that was
    sent is recorded in the run folder, so no row is sent twice. If the service cannot be reached at
    the start, training does not start. If a later request fails, a warning is printed and the rows
    are sent with the next checkpoint.

    Args:
        run_dir: Folder of the run.
    """

    id_file: ClassVar[str]

    def __init__(self, *, run_dir: str) -> None:
        super().__init__()
        self._run_dir = Path(run_dir)
        self._rows: dict[int, Row] = {}
        self._sent_before = -1
        self._id: str | None = None

    @property
    def version(self) -> str:
        return self._id or ""

    @rank_zero_only
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Open the run that an earlier start created in the service, or create a new one.

        Raises:
            ResourceError: The service cannot be reached or rejects the request.
        """
        known, self._sent_before = self._read_id()
        self._rows.clear()
        try:
            self._id = self._open(config, known)
        except ArcloopError:
            raise
        except Exception as cause:  # clients raise many types without a common base
            raise ResourceError(
                f"{self.service} cannot be used: {str(cause).strip().splitlines()[0]}",
                where=f"logger.{self.service}",
                remedy="correct its address or login, or choose logger=default",
            ) from cause
        self._write_id(self._sent_before)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._id is not None and (step or 0) > self._sent_before:
            row = self._rows.setdefault(step or 0, {})
            row.update({name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def flush(self) -> None:
        if self._id is None or not self._rows:
            return
        if self._try(self._send, dict(sorted(self._rows.items()))):
            self._write_id(max(self._rows))
            self._rows.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._id is None:
            return
        self.flush()
        if status == "success":
            self._try(self._send_results)
        self._try(self._close, status == "success")
        self._id = None

    def _send_results(self) -> None:
        """Send the run's files and the metrics of the query split."""
        found = self._run_dir / _METRICS
        if found.is_file():
            metrics = json.loads(found.read_bytes())
            self._send_summary({f"evaluation/{name}": float(v) for name, v in metrics.items()})
        self._send_files()

    def _files(self) -> list[str]:
        """Return the relative paths of model, config, metrics, index and evaluation."""
        found = (path for pattern in _FILES for path in sorted(self._run_dir.glob(pattern)))
        return [path.relative_to(self._run_dir).as_posix() for path in found]

    def _try(self, request: Callable[..., None], *args: Any) -> bool:
        """Return whether a request succeeded; prints a warning if it failed."""
        try:
            request(*args)
        except Exception as cause:  # noqa: BLE001 - a failing service must not stop the training
            print_line(f"warning: {self.service}: {str(cause).strip().splitlines()[0]}")
            return False
        return True

    def _read_id(self) -> tuple[str | None, int]:
        try:
            content = json.loads((self._run_dir / self.id_file).read_bytes())
            return str(content["id"]), int(content["sent"])
        except (OSError, ValueError, KeyError):
            return None, -1

    def _write_id(self, sent: int) -> None:
        write_json(self._run_dir / self.id_file, {"id": self._id, "sent": sent})

    @abstractmethod
    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        """Open the run with the id `known`, or create a new one, and return its id."""

    @abstractmethod
    def _send(self, rows: Mapping[int, Row]) -> None:
        """Send rows of metrics, keyed by step."""

    @abstractmethod
    def _send_summary(self, metrics: Row) -> None:
        """Send metrics that do not belong to a step."""

    @abstractmethod
    def _send_files(self) -> None:
        """Send the files of the run."""

    @abstractmethod
    def _close(self, succeeded: bool) -> None:
        """Mark the run of the service as finished or failed."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of all leaves of a config.

    >>> dict(flatten({"head": {"margin": 0.3}, "seed": 0}))
    {'head.margin': 0.3, 'seed': 0}
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

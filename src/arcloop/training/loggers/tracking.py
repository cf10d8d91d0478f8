"""What loggers of tracking services share: one run there for one run here, each row sent once."""

from __future__ import annotations

import json
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning.utilities import rank_zero_only

from arcloop.artifacts.atomic import write_json
from arcloop.display.terminal import say
from arcloop.errors import ArcloopError, ResourceError
from arcloop.training.loggers.run_logger import RunLogger

Row = dict[str, float]

TRACKED_IDS = (".mlflow.json", ".wandb.json")
"""Files in a run that say which run of a service it is; an overwritten run is a new one there."""
_FILES = ("model.pt", "config.yaml", "metrics.csv", "index/[!.]*", "evaluation/[!.]*")
_METRICS = "evaluation/metrics.json"


class TrackingLogger(RunLogger):
    """Sends what is logged whenever a checkpoint is written, and at the end the run's files.

    A resumed run goes on with the same run of the service. What was sent before a kill is noted and
    not sent again. A service that cannot be reached stops the run before it begins; later, it is
    only said, and the rows wait for the next checkpoint.

    Args:
        run_dir: The run.
    """

    service: ClassVar[str]
    id_file: ClassVar[str]

    def __init__(self, *, run_dir: str) -> None:
        super().__init__()
        self._run_dir = Path(run_dir)
        self._rows: dict[int, Row] = {}
        self._sent_before = -1
        self._id: str | None = None

    @property
    def name(self) -> str:
        return self.service

    @property
    def version(self) -> str:
        return self._id or ""

    @rank_zero_only
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Open the service's run: the one that this run was before, or a new one.

        Raises:
            ResourceError: The service refuses, or cannot be reached.
        """
        known, self._sent_before = self._noted()
        self._rows.clear()
        try:
            self._id = self._open(config, known)
        except ArcloopError:
            raise
        except Exception as cause:  # whatever a client raises
            raise ResourceError(
                f"{self.service} cannot be used: {str(cause).strip().splitlines()[0]}",
                where=f"logger.{self.service}",
                remedy="mend its address or login, or choose logger=default",
            ) from cause
        self._note(self._sent_before)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._id is not None and (step or 0) > self._sent_before:
            row = self._rows.setdefault(step or 0, {})
            row.update({name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: `begin` was given the whole config."""

    @rank_zero_only
    def flush(self) -> None:
        if self._id is None or not self._rows:
            return
        if self._told(self._send, dict(sorted(self._rows.items()))):
            self._note(max(self._rows))
            self._rows.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._id is None:
            return
        self.flush()
        if status == "success":
            self._told(self._send_results)
        self._told(self._close, status == "success")
        self._id = None

    def _send_results(self) -> None:
        """Send the run's files, and the metrics of the query split beside those of training."""
        found = self._run_dir / _METRICS
        if found.is_file():
            metrics = json.loads(found.read_bytes())
            self._send_summary({f"evaluation/{name}": float(v) for name, v in metrics.items()})
        self._send_files()

    def _files(self) -> list[str]:
        """Return what there is to send: model, config, index and evaluation, relative paths."""
        found = (path for pattern in _FILES for path in sorted(self._run_dir.glob(pattern)))
        return [path.relative_to(self._run_dir).as_posix() for path in found]

    def _told(self, act: Any, *args: Any) -> bool:
        try:
            act(*args)
        except Exception as cause:  # noqa: BLE001 - no tracking service is worth a training
            say(f"warning: {self.service}: {str(cause).strip().splitlines()[0]}")
            return False
        return True

    def _noted(self) -> tuple[str | None, int]:
        try:
            noted = json.loads((self._run_dir / self.id_file).read_bytes())
            return str(noted["id"]), int(noted["sent"])
        except (OSError, ValueError, KeyError):
            return None, -1

    def _note(self, sent: int) -> None:
        write_json(self._run_dir / self.id_file, {"id": self._id, "sent": sent})

    @abstractmethod
    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        """Open the run with this id, or a new one, and return its id."""

    @abstractmethod
    def _send(self, rows: Mapping[int, Row]) -> None:
        """Send rows, by step."""

    @abstractmethod
    def _send_summary(self, metrics: Row) -> None:
        """Send numbers that belong to no step."""

    @abstractmethod
    def _send_files(self) -> None:
        """Send the run's `_files`."""

    @abstractmethod
    def _close(self, succeeded: bool) -> None:
        """End the run."""


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a config under dotted names.

    >>> dict(flat({"head": {"margin": 0.3}, "seed": 0}))
    {'head.margin': 0.3, 'seed': 0}
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

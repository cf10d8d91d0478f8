"""Logger for MLflow: parameters, metrics per step, and the files of the run."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from arcloop.artifacts.locks import file_lock
from arcloop.config.targets import require_extra
from arcloop.training.loggers.tracking import Row, TrackingLogger, flatten

_SQLITE = "sqlite:///"
_METRICS_PER_REQUEST, _PARAMS_PER_REQUEST, _MAX_PARAM_LENGTH = 1000, 100, 6000  # MLflow's limits
_VERBOSE_LOGGERS = ("mlflow", "alembic")


class MlflowLogger(TrackingLogger):
    """Logs to an MLflow server, or to a database file.

    With a database file, the files of the runs are stored in `artifacts/` in the same folder.
    MLflow's telemetry is disabled unless MLFLOW_DISABLE_TELEMETRY is set.

    Args:
        run_dir: Folder of the run; its name becomes the name of the MLflow run.
        tracking_uri: "sqlite:///FILE", "http://...", or any other MLflow tracking URI.
        experiment: Name of the experiment; created if it does not exist.

    Raises:
        ConfigError: MLflow is not installed.
    """

    service: ClassVar[str] = "mlflow"
    id_file: ClassVar[str] = ".mlflow.json"

    def __init__(self, *, run_dir: str, tracking_uri: str, experiment: str) -> None:
        super().__init__(run_dir=run_dir)
        needed = ["mlflow", *(["sqlalchemy"] if tracking_uri.startswith(_SQLITE) else [])]
        require_extra("mlflow", *needed, where="logger=mlflow")
        self._uri, self._experiment = tracking_uri, experiment
        self._client: Any = None

    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        with self._database() as artifacts:
            self._client = MlflowClient(self._uri)
            experiment = self._experiment_id(artifacts)
        if known is not None and self._reopen(known):
            return known
        run_id = str(self._client.create_run(experiment, run_name=self._run_dir.name).info.run_id)
        params = [Param(name, str(value)[:_MAX_PARAM_LENGTH]) for name, value in flatten(config)]
        for chunk in _chunks(params, _PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=chunk)
        return run_id

    @contextlib.contextmanager
    def _database(self) -> Iterator[str | None]:
        """Lock the database file while it is created, and yield the folder for artifacts.

        Yields None if the tracking URI is not a database file.
        """
        if not self._uri.startswith(_SQLITE):
            yield None
            return
        folder = Path(self._uri.removeprefix(_SQLITE)).parent
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "arcloop"):
            yield str((folder / "artifacts").resolve())

    def _experiment_id(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment, artifact_location=artifacts))

    def _reopen(self, run_id: str) -> bool:
        """Set an existing run to running; return False if it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            active = self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as cause:
            if cause.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            active = False
        if active:
            self._client.update_run(run_id, status="RUNNING")
        return bool(active)

    def _send(self, rows: Mapping[int, Row]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, row in rows.items()
            for name, value in row.items()
        ]
        for chunk in _chunks(metrics, _METRICS_PER_REQUEST):
            self._client.log_batch(self._id, metrics=chunk)

    def _send_summary(self, metrics: Row) -> None:
        self._send({0: metrics})

    def _send_files(self) -> None:
        for name in self._files():
            folder = name.rpartition("/")[0] or None
            self._client.log_artifact(self._id, str(self._run_dir / name), folder)

    def _close(self, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "FAILED")


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

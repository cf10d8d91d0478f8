"""Loggers for MLflow and Weights & Biases: config, metrics per step, and the files of the run."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from arcloop.artifacts.atomic import file_lock
from arcloop.config.targets import require_extra
from arcloop.config.value_types import checked
from arcloop.training.loggers import Row, TrackingLogger

_SQLITE = "sqlite:///"
_MAX_PARAM_LENGTH = 6000  # MLflow's limit


class MlflowLogger(TrackingLogger):
    """Logs to an MLflow server, or to a database file.

    With a database file, the files of the runs are stored in `artifacts/` in the same folder.
    MLflow's telemetry is disabled unless MLFLOW_DISABLE_TELEMETRY is "false".

    Args:
        run_dir: Folder of the run; its name becomes the name of the MLflow run.
        tracking_uri: "sqlite:///FILE", "http://...", or any other MLflow tracking URI.
        experiment: Name of the experiment; created if it does not exist.

    Raises:
        ConfigError: MLflow is not installed.
    """

    service: ClassVar[str] = "mlflow"

    def __init__(self, *, run_dir: str, tracking_uri: str, experiment: str) -> None:
        super().__init__(run_dir=run_dir)
        needed = ["mlflow", *(["sqlalchemy"] if tracking_uri.startswith(_SQLITE) else [])]
        require_extra("mlflow", *needed, where="logger=mlflow")
        self._uri, self._experiment = tracking_uri, experiment
        self._client: Any = None

    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        database = Path(self._uri.removeprefix(_SQLITE)) if self._uri.startswith(_SQLITE) else None
        artifacts = None if database is None else str((database.parent / "artifacts").resolve())
        # Only one process creates the database file and the experiment.
        with contextlib.nullcontext() if database is None else file_lock(database):
            self._client = client = MlflowClient(self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            experiment_id = (
                client.create_experiment(self._experiment, artifact_location=artifacts)
                if experiment is None
                else experiment.experiment_id
            )
        if known is not None:
            try:
                if client.get_run(known).info.lifecycle_stage == "active":
                    client.update_run(known, status="RUNNING")
                    return known
            except MlflowException as cause:
                if cause.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        run_id = str(client.create_run(experiment_id, run_name=self._run_dir.name).info.run_id)
        params = [Param(name, str(value)[:_MAX_PARAM_LENGTH]) for name, value in flatten(config)]
        client.log_batch(run_id, params=params)
        return run_id

    def _send(self, rows: Mapping[int, Row]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for step, row in rows.items()
            for name, value in row.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def _send_results(self, metrics: Row) -> None:
        self._send({0: metrics})
        for name in self._files():
            folder = name.rpartition("/")[0] or None
            self._client.log_artifact(self._id, str(self._run_dir / name), folder)

    def _close(self, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "FAILED")


class WandbLogger(TrackingLogger):
    """Logs to W&B, or to files in the run folder that `wandb sync` can upload later.

    Args:
        run_dir: Folder of the run; its name becomes the name of the W&B run, and W&B writes to its
            subfolder `wandb/`.
        project: Name of the project.
        mode: "offline" sends nothing; "online" requires a login.

    Raises:
        ConfigError: W&B is not installed, or the mode is unknown.
    """

    service: ClassVar[str] = "wandb"

    @checked("logger.wandb")
    def __init__(self, *, run_dir: str, project: str, mode: Literal["offline", "online"]) -> None:
        super().__init__(run_dir=run_dir)
        require_extra("wandb", "wandb", where="logger=wandb")
        self._project, self._mode = project, mode
        self._run: Any = None

    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        if self._mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=self._run_dir.name,
            id=known or secrets.token_hex(4),
            resume="allow" if self._mode == "online" else None,  # `wandb sync` merges offline runs
            dir=str(self._run_dir.resolve()),  # W&B's service may run in another folder
            mode=self._mode,
            config=dict(config),
            reinit="create_new",  # a sweep has several runs in one process
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )
        return str(self._run.id)

    def _send(self, rows: Mapping[int, Row]) -> None:
        for step, row in rows.items():
            self._run.log(row, step=step)

    def _send_results(self, metrics: Row) -> None:
        import wandb

        self._run.summary.update(metrics)
        sent = wandb.Artifact(f"run-{self._id}", "model")
        for name in self._files():
            # Upload from the run folder; by default, W&B copies the file to the home folder.
            file = str((self._run_dir / name).resolve())
            sent.add_file(file, name=name, policy="immutable", skip_cache=True)
        self._run.log_artifact(sent)

    def _close(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


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

"""Loggers for MLflow and Weights & Biases: config, metrics per step, and the files of the run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from arcloop.artifacts.atomic import file_lock, write_json
from arcloop.artifacts.writer import git_revision
from arcloop.config.recorded import flatten
from arcloop.config.targets import require_extra
from arcloop.config.value_types import checked
from arcloop.display.terminal import print_line
from arcloop.export.mlflow_model import register_model
from arcloop.training.loggers import Outcome, Row, TrackingLogger

_SQLITE = "sqlite:///"
_MAX_PARAM_LENGTH, _MAX_TAG_LENGTH = 6000, 5000  # MLflow's limits
_MAX_WANDB_TAG_LENGTH = 64
_PARENT_FILE, _PARENT_TAG = ".mlflow.json", "mlflow.parentRunId"
_STATUS = {Outcome.FINISHED: "FINISHED", Outcome.FAILED: "FAILED"}  # "KILLED" for the others


class MlflowLogger(TrackingLogger):
    """Logs to an MLflow server, or to a database file.

    The jobs of a sweep are the children of one run, whose id is in a file in the sweep's folder.
    With a database file, the files of the runs are stored in `artifacts/` in the same folder.
    MLflow's telemetry is disabled unless MLFLOW_DISABLE_TELEMETRY is "false".

    Args:
        run_dir: Folder of the run; its name becomes the name of the MLflow run.
        tracking_uri: "sqlite:///FILE", "http://...", or any other MLflow tracking URI.
        experiment: Name of the experiment; created if it does not exist.
        system_metrics: Record the load of CPU, memory, disk, network and GPU; needs psutil.
        register_model: Name in MLflow's model registry, of which the finished model becomes a new
            version; None: it is not registered.

    Raises:
        ConfigError: MLflow is not installed, or a package that it needs.
    """

    service: ClassVar[str] = "mlflow"

    def __init__(
        self,
        *,
        run_dir: str,
        tracking_uri: str,
        experiment: str,
        system_metrics: bool = False,
        register_model: str | None = None,
    ) -> None:
        super().__init__(run_dir=run_dir)
        needed = ["mlflow", *(["sqlalchemy"] if tracking_uri.startswith(_SQLITE) else [])]
        needed += ["pandas"] if register_model else []  # the skinny package does not bring it
        require_extra("mlflow", *needed, where="logger=mlflow")
        self._uri, self._experiment = tracking_uri, experiment
        self._registered_name = register_model
        self._system_metrics = system_metrics
        self._client: Any = None
        self._monitor: Any = None
        self._parent: str | None = None

    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param, RunTag
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
        origin = config.get("origin") or {}
        tags = _tags(origin)
        if sweep := origin.get("sweep"):
            tags[_PARENT_TAG] = self._parent = self._open_parent(experiment_id, sweep, tags)
        run_id = known if known and self._reopen(known) else None
        is_new = run_id is None
        if run_id is None:
            created = client.create_run(experiment_id, run_name=self._run_dir.name)
            run_id = str(created.info.run_id)
        params = dict(flatten({k: v for k, v in config.items() if k != "origin"})) if is_new else {}
        # A choice of a group, e.g. head=arcface, is not a leaf of the config.
        params |= {k: v for k, v in origin.get("values", {}).items() if is_new and k not in params}
        client.log_batch(
            run_id,
            params=[Param(name, str(value)[:_MAX_PARAM_LENGTH]) for name, value in params.items()],
            tags=[RunTag(name, value[:_MAX_TAG_LENGTH]) for name, value in tags.items()],
        )
        self._start_monitor(run_id, is_new=is_new)
        return run_id

    def _reopen(self, run_id: str) -> bool:
        """Mark a run as running; return whether it exists."""
        from mlflow.exceptions import MlflowException

        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return False
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as cause:
            if cause.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _open_parent(
        self, experiment_id: str, sweep: Mapping[str, str], tags: Mapping[str, str]
    ) -> str:
        """Return the id of the run of the sweep, which the first of its jobs creates."""
        file = Path(sweep["folder"]) / _PARENT_FILE
        with file_lock(file):
            known: dict[str, str] = json.loads(file.read_bytes()) if file.exists() else {}
            found = known.get(self._experiment)
            if found is not None and self._reopen(found):
                return found
            of_sweep = {**tags, "arcloop.command": sweep["command"]}
            of_sweep["mlflow.source.name"] = sweep["command"]
            run = self._client.create_run(
                experiment_id,
                run_name=sweep["id"],
                tags={name: value[:_MAX_TAG_LENGTH] for name, value in of_sweep.items()},
            )
            write_json(file, {**known, self._experiment: run.info.run_id})
            return str(run.info.run_id)

    def _start_monitor(self, run_id: str, *, is_new: bool) -> None:
        if not self._system_metrics:
            return
        if importlib.util.find_spec("psutil") is None:
            print_line("mlflow: system metrics are not recorded, because psutil is not installed")
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor: Any = SystemMetricsMonitor
        self._monitor = monitor(run_id, resume_logging=not is_new, tracking_uri=self._uri)
        self._monitor.start()

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
        if self._registered_name:
            version = register_model(
                self._client, str(self._id), self._run_dir, self._registered_name
            )
            print_line(f"mlflow: registered as version {version} of {self._registered_name}")

    def _close(self, outcome: Outcome) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._client.set_tag(self._id, "arcloop.outcome", outcome.value)
        self._client.set_terminated(self._id, _STATUS.get(outcome, "KILLED"))
        if self._parent is not None:
            is_stopped = outcome is Outcome.INTERRUPTED
            self._close_parent(self._parent, "KILLED" if is_stopped else "FINISHED")

    def _close_parent(self, parent: str, status: str) -> None:
        """Set the status of the run of the sweep, unless other jobs are running."""
        experiment_id = self._client.get_run(parent).info.experiment_id
        running = self._client.search_runs(
            [experiment_id],
            f"tags.`{_PARENT_TAG}` = '{parent}' and attributes.status = 'RUNNING'",
            max_results=1,
        )
        if not running:
            self._client.set_terminated(parent, status)


class WandbLogger(TrackingLogger):
    """Logs to W&B, or to files in the run folder that `wandb sync` can upload later.

    The jobs of a sweep are one group of runs, with their swept values as tags.

    Args:
        run_dir: Folder of the run; its name becomes the name of the W&B run, and W&B writes to its
            subfolder `wandb/`.
        project: Name of the project.
        mode: "offline" sends nothing; "online" requires a login.
        system_metrics: Record the load of CPU, memory, disk, network and GPU.

    Raises:
        ConfigError: W&B is not installed, or the mode is unknown.
    """

    service: ClassVar[str] = "wandb"

    @checked("logger.wandb")
    def __init__(
        self,
        *,
        run_dir: str,
        project: str,
        mode: Literal["offline", "online"],
        system_metrics: bool = False,
    ) -> None:
        super().__init__(run_dir=run_dir)
        require_extra("wandb", "wandb", where="logger=wandb")
        self._project, self._mode, self._system_metrics = project, mode, system_metrics
        self._run: Any = None

    def _open(self, config: Mapping[str, Any], known: str | None) -> str:
        if self._mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        origin = config.get("origin") or {}
        sweep = origin.get("sweep")
        swept = [f"{key}={value}" for key, value in origin["values"].items()] if sweep else []
        self._run = wandb.init(
            project=self._project,
            group=sweep["id"] if sweep else None,
            job_type="train",
            tags=[tag[:_MAX_WANDB_TAG_LENGTH] for tag in swept],
            name=self._run_dir.name,
            id=known or secrets.token_hex(4),
            resume="allow" if self._mode == "online" else None,  # `wandb sync` merges offline runs
            dir=str(self._run_dir.resolve()),  # W&B's service may run in another folder
            mode=self._mode,
            config={**config, "git": git_revision()},
            reinit="create_new",  # a sweep has several runs in one process
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                x_disable_stats=not self._system_metrics,
            ),
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

    def _close(self, outcome: Outcome) -> None:
        self._run.summary["outcome"] = outcome.value
        self._run.finish(exit_code=1 if outcome is Outcome.FAILED else 0)


def _tags(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of an MLflow run, from `Config.origin`; MLflow's page shows some of them."""
    tags = {"arcloop.git": git_revision() or "unknown"}
    tags["mlflow.source.git.commit"] = tags["arcloop.git"].removesuffix("-dirty")
    if command := origin.get("command"):
        tags |= {"arcloop.command": command, "mlflow.source.name": command}
    if sweep := origin.get("sweep"):
        tags |= {"arcloop.sweep": sweep["id"], "arcloop.swept": ", ".join(origin["values"])}
    return tags

"""Results of the jobs of a sweep, read from its folder."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from arcloop import artifacts
from arcloop.artifacts.metrics import read_metrics
from arcloop.config.composition import quote_override
from arcloop.errors import ArtifactError
from arcloop.pipeline.sweeps.record import RECORD, JobRecord, Pruned

SEED = "seed"
SWEEP_KEYS = ("hydra.", "sweep", "launcher", "run_dir", "resume", "overwrite")
"""Prefixes of overrides that configure the sweep and not the settings that it compares."""
FINISHED, FAILED, PRUNED = "finished", "failed", "pruned"
RUNNING, INTERRUPTED = "running", "interrupted"
"""States of a job."""
_TRAINING = ("train", "run")
_STARTED, _CONFIG, _METRICS = ".begun.json", "config.yaml", "metrics.csv"
"""Equal to the constants of `arcloop.training`, which cannot be imported without torch."""


@dataclass(frozen=True)
class JobResult:
    """The result of one job of a sweep.

    Attributes:
        folder: Run directory of the job.
        given: Overrides of the job.
        swept: Keys that the sweep varies; they name the folder.
        failure: Why the job has no result; None if it finished or is running.
        config: The resolved config; empty if the job failed before training started.
        objective: Best value of the monitored metric on val, or None.
        metrics: Name -> value, on the query split.
        code: Git revision and package versions; empty without a run.
        state: "finished", "failed", "pruned", "running" or "interrupted".
        started: Start time in UTC, ISO 8601; empty if unknown.
        ended: End time in UTC, ISO 8601; empty if unknown.
        pruned: When a pruner ended the job; None if it was not pruned.
        objectives: Name -> direction and value, of a search with several objectives.
        on_run: The job started from a finished run and trained nothing.
    """

    folder: Path
    given: Sequence[str]
    swept: tuple[str, ...]
    failure: str | None
    config: Mapping[str, Any]
    objective: float | None
    metrics: Mapping[str, float]
    code: Mapping[str, Any]
    state: str = FINISHED
    started: str = ""
    ended: str = ""
    pruned: Pruned | None = None
    objectives: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    on_run: bool = False

    @property
    def duration_s(self) -> float | None:
        """Duration of the last attempt of the job in seconds; None if unknown."""
        if not self.started or not self.ended:
            return None
        started, ended = map(datetime.datetime.fromisoformat, (self.started, self.ended))
        return (ended - started).total_seconds()

    @cached_property
    def val(self) -> Mapping[str, float]:
        """Name -> value on the val split, at the checkpoint that was kept."""
        monitor = self.config.get("monitor")
        if self.objective is None or monitor is None:
            return {}
        sign = -1 if self.config.get("monitor_mode") == "min" else 1
        return {**_best_row(self.folder / _METRICS, monitor, sign), monitor: self.objective}

    def value_of(self, monitor: str) -> float | None:
        """Return the value of a metric of val; jobs without a config have only their objective."""
        if self.config.get("monitor", monitor) == monitor:
            return self.objective
        return self.val.get(monitor)

    @cached_property
    def overrides(self) -> Mapping[str, str]:
        """Key -> value, as given on the command line."""
        pairs = (override.lstrip("+~").partition("=") for override in self.given)
        return {key: value.strip("'\"") for key, _, value in pairs}

    def value(self, key: str) -> str | None:
        """Return the value of a key: the override if there is one, else the resolved value."""
        if key in self.overrides:
            return self.overrides[key]
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return None if node is None or isinstance(node, Mapping | list) else str(node)


def as_number(value: str | None) -> float | None:
    """Return a value as a finite number, or None if it is not a finite number."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _best_row(file: Path, monitor: str, sign: int) -> dict[str, float]:
    """Return the metrics of val in the epoch with the best monitor, the last of equal ones."""
    rows: list[dict[str, float]] = []
    with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error):
        for texts in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
            numbers = {name: as_number(text) for name, text in texts.items() if name}
            rows.append({name: n for name, n in numbers.items() if n is not None})
    found = [row for row in rows if monitor in row]
    if not found:
        return {}
    best = max(reversed(found), key=lambda row: sign * row[monitor])
    values: dict[str, float] = {}
    for row in rows:
        if row.get("epoch") == best.get("epoch"):
            values |= {name: value for name, value in row.items() if name.startswith("val_")}
    return values


def job_folders(sweep: Path) -> list[Path]:
    """Return the folders in a sweep, without links, such as that to the best job."""
    return [folder for folder in sorted(sweep.glob("*/")) if not folder.is_symlink()]


def read_jobs(sweep: Path) -> list[JobResult]:
    """Read the jobs of a sweep, ordered by the names of their folders.

    Raises:
        ArtifactError: The folder contains no jobs, or a run in it is damaged.
    """
    jobs = [job for folder in job_folders(sweep) if (job := read_job(folder)) is not None]
    if jobs:
        return jobs
    what = "this folder contains no job of a sweep"
    remedy = "pass the folder of a sweep: `arcloop train -m` writes runs/sweeps/NAME"
    if not sweep.is_dir():
        what = "this folder does not exist"
    elif _is_run(sweep):
        what, remedy = (
            "this is a single run, not a sweep",
            f"pass its parent folder: {sweep.parent}",
        )
    raise ArtifactError(what, where=sweep, remedy=remedy)


def read_job(folder: Path) -> JobResult | None:
    """Read one job; None if the folder is neither a run nor has the record of a job.

    Raises:
        ArtifactError: The run is damaged.
    """
    recorded = JobRecord.read(folder / RECORD)
    failure = recorded.failure.what if recorded and recorded.failure else None
    results: tuple[Any, Any, Any, Any]
    if _is_run(folder):
        run = artifacts.read(folder, "run")
        results = (
            run.config,
            run.info["objective"],
            _read_metrics(folder / "evaluation"),
            run.code,
        )
        given = run.info["overrides"]
    elif recorded is not None:
        results, given = ({}, None, recorded.metrics, {}), recorded.overrides
        if not recorded.pruned and recorded.verb in _TRAINING:
            failure = failure or "the run was removed"
    else:
        return _read_unfinished(folder) if (folder / _STARTED).is_file() else None
    config, objective, metrics, code = results
    if recorded is None:  # a run that was moved into the folder
        return JobResult(folder, given, (), None, config, objective, metrics, code)
    state = FAILED if failure else PRUNED if recorded.pruned else FINISHED
    return JobResult(
        folder, given, tuple(recorded.swept), failure, config, objective, metrics, code,
        state=state, started=recorded.started, ended=recorded.ended, pruned=recorded.pruned,
        objectives=recorded.objectives, on_run=bool(recorded.run),
    )  # fmt: skip


def _read_unfinished(folder: Path) -> JobResult:
    """Read a job that is running or was interrupted."""
    config = yaml.safe_load((folder / _CONFIG).read_bytes())
    given: list[str] = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        given = json.loads((folder / _STARTED).read_bytes())["parts"][-1]["overrides"]
    state, failure = RUNNING, None
    if not is_running(folder):
        state, failure = INTERRUPTED, "interrupted: run the same command again to continue it"
    return JobResult(folder, given, (), failure, config, None, {}, {}, state)


def is_running(folder: Path) -> bool:
    """Return whether a process is training in a folder.

    The process writes its id and host to a file next to the folder. Whether it still exists is
    checked only on the same host; a process of another host is assumed to exist.
    """
    holder = folder.with_name(f".{folder.name}.holder")
    try:
        _, number, _, host = holder.read_text(encoding="utf-8").split(maxsplit=3)
        if host == socket.gethostname():
            os.kill(int(number), 0)  # signal 0 only checks whether the process exists
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _is_run(folder: Path) -> bool:
    return artifacts.exists(folder) and artifacts.read(folder, None).kind == "run"


def _read_metrics(evaluation: Path) -> dict[str, float]:
    if not artifacts.exists(evaluation):
        return {}
    try:
        return read_metrics(evaluation)
    except (OSError, ValueError) as cause:
        raise ArtifactError(
            f"metrics.json cannot be read: {cause}",
            where=evaluation,
            remedy=f"arcloop evaluate {quote_override('run_dir', str(evaluation.parent))}",
        ) from None

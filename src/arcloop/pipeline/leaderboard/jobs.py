"""Jobs of a sweep, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.artifacts import MANIFEST, Artifact
from arcloop.errors import ArtifactError
from arcloop.pipeline.sweeps import record

SEED = "seed"
SWEEP_KEYS = ("hydra.", "sweep", "launcher", "run_dir", "resume", "overwrite")
"""Prefixes of overrides that configure the sweep itself and not what it compares."""
_STARTED = ".begun.json"
"""Equal to `arcloop.training.resume.STARTED`, which cannot be imported without torch."""


@dataclass(frozen=True)
class JobResult:
    """The result of one job of a sweep.

    Attributes:
        folder: Run directory of the job.
        given: Overrides of the job.
        swept: Keys that the sweep varies; they name the folder.
        config: The resolved config; empty if the job produced no run.
        objective: Best value of the monitored metric on val, or None.
        metrics: Name -> value, on the query split.
        failure: Why the job has no result; None if it finished.
        code: Git revision and package versions.
    """

    folder: Path
    given: Sequence[str]
    swept: tuple[str, ...]
    config: Mapping[str, Any]
    objective: float | None
    metrics: Mapping[str, float]
    failure: str | None
    code: Mapping[str, Any]

    @cached_property
    def overrides(self) -> Mapping[str, str]:
        """Key -> value, as given on the command line."""
        pairs = (override.lstrip("+~").partition("=") for override in self.given)
        return {key: value.strip("'\"") for key, _, value in pairs}

    @property
    def monitor(self) -> str | None:
        """Name of the monitored metric."""
        return self.config.get("monitor")

    def value(self, key: str) -> str | None:
        """Return the value of a key: the override if there is one, else the resolved value."""
        if key in self.overrides:
            return self.overrides[key]
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return None if node is None or isinstance(node, Mapping | list) else str(node)


def read_jobs(sweep: Path) -> list[JobResult]:
    """Read every job in the folder of a sweep.

    Raises:
        ArtifactError: The folder does not exist, contains no job, or a run in it is damaged.
    """
    if not sweep.is_dir():
        raise ArtifactError(
            "this folder does not exist",
            where=sweep,
            remedy="pass the folder of a sweep: `arcloop train -m` writes runs/sweeps/NAME",
        )
    found = [_read_job(folder) for folder in sorted(sweep.iterdir()) if folder.is_dir()]
    jobs = [job for job in found if job is not None]
    if not jobs and _is_run(sweep):
        raise ArtifactError(
            "this is a single run, not a sweep",
            where=sweep,
            remedy=f"pass its parent folder: {sweep.parent}",
        )
    if not jobs:
        raise ArtifactError(
            "this folder contains no job of a sweep",
            where=sweep,
            remedy="pass the folder of a sweep: `arcloop train -m` writes runs/sweeps/NAME",
        )
    return jobs


def _read_job(folder: Path) -> JobResult | None:
    recorded = record.read(folder)
    swept = tuple(recorded.swept) if recorded else ()
    if _is_run(folder):
        failure = recorded.failure.what if recorded and recorded.failure else None
        return _finished_job(folder, artifacts.read(folder, "run"), swept, failure)
    if recorded is not None:
        failure = recorded.failure.what if recorded.failure else "the run was removed"
        return JobResult(folder, recorded.overrides, swept, {}, None, {}, failure, {})
    if (folder / _STARTED).is_file():
        given = [part for part in folder.name.split(",") if "=" in part]
        failure = "interrupted: run the same command again to continue it"
        return JobResult(folder, given, (), {}, None, {}, failure, {})
    return None


def _is_run(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["kind"] == "run")
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return artifacts.read(folder, "run").kind == "run"  # raises an error with the reason


def _finished_job(
    folder: Path, run: Artifact, swept: tuple[str, ...], failure: str | None
) -> JobResult:
    evaluation, metrics = folder / "evaluation", {}
    if artifacts.exists(evaluation):
        try:
            metrics = json.loads((evaluation / "metrics.json").read_bytes())
        except (OSError, ValueError) as cause:
            raise ArtifactError(
                f"metrics.json cannot be read: {cause}",
                where=evaluation,
                remedy=f"arcloop evaluate run_dir={folder}",
            ) from None
    code = json.loads((folder / MANIFEST).read_bytes())["code"]
    given, objective = run.info["overrides"], run.info["objective"]
    return JobResult(folder, given, swept, run.config, objective, metrics, failure, code)


def varied_keys(jobs: Sequence[JobResult]) -> list[str]:
    """Return the keys whose values differ between jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        key
        for key in keys
        if not key.startswith(SWEEP_KEYS) and len({job.value(key) for job in jobs}) > 1
    ]

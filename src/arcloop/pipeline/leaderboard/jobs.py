"""The folder of a sweep -> its jobs, finished, failed and interrupted."""

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
ABOUT_THE_SWEEP = ("hydra.", "sweep", "launcher", "run_dir", "resume", "overwrite")
"""What overrides begin with that say how a sweep ran, not what it tried."""
_BEGUN = ".begun.json"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: Where it ran.
        given: What it was composed from.
        swept: Keys that its sweep varied, and that its folder is named by.
        config: Its resolved config; empty where it made no run.
        objective: The monitored metric of val; None: it has none.
        metrics: Name -> value, of the query split.
        failure: Why it has no result; None: it is finished.
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
        """Key -> value as given."""
        pairs = (override.lstrip("+~").partition("=") for override in self.given)
        return {key: value.strip("'\"") for key, _, value in pairs}

    @property
    def monitor(self) -> str | None:
        """Name of the objective."""
        return self.config.get("monitor")

    def value(self, key: str) -> str | None:
        """Return what this job has for a key: as given, else as its config resolved it."""
        if key in self.overrides:
            return self.overrides[key]
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return None if node is None or isinstance(node, Mapping | list) else str(node)


def read_jobs(sweep: Path) -> list[Job]:
    """Read every job that has a folder in the folder of a sweep.

    Raises:
        ArtifactError: There is no such folder, or no job in it, or what it made is damaged.
    """
    if not sweep.is_dir():
        raise ArtifactError(
            "there is no such folder",
            where=sweep,
            remedy="pass the folder of a sweep: `arcloop train -m` makes runs/sweeps/NAME",
        )
    found = [_read(folder) for folder in sorted(sweep.iterdir()) if folder.is_dir()]
    jobs = [job for job in found if job is not None]
    if not jobs:
        inside = _is_run(sweep)
        raise ArtifactError(
            "this is a single run" if inside else "there is no job of a sweep here",
            where=sweep,
            remedy=f"pass the folder above it: {sweep.parent}" if inside
            else "pass the folder of a sweep: `arcloop train -m` makes runs/sweeps/NAME",
        )  # fmt: skip
    return jobs


def _read(folder: Path) -> Job | None:
    told = record.read(folder)
    swept = tuple(told.swept) if told else ()
    if _is_run(folder):
        failure = told.failure.what if told and told.failure else None
        return _finished(folder, artifacts.read(folder, "run"), swept, failure)
    if told is not None:
        failure = told.failure.what if told.failure else "its run was removed"
        return Job(folder, told.overrides, swept, {}, None, {}, failure, {})
    if (folder / _BEGUN).is_file():
        given = [part for part in folder.name.split(",") if "=" in part]
        return Job(folder, given, (), {}, None, {}, "interrupted: the same command goes on", {})
    return None


def _is_run(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["kind"] == "run")
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return artifacts.read(folder, "run").kind == "run"  # which tells what is wrong with it


def _finished(folder: Path, run: Artifact, swept: tuple[str, ...], failure: str | None) -> Job:
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
    return Job(folder, given, swept, run.config, objective, metrics, failure, code)


def varied(jobs: Sequence[Job]) -> list[str]:
    """Return the keys that jobs have different values for, in the order they were given."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        key
        for key in keys
        if not key.startswith(ABOUT_THE_SWEEP) and len({job.value(key) for job in jobs}) > 1
    ]

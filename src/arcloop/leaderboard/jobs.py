"""The folder of a sweep -> its jobs, finished, failed and interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.artifacts import MANIFEST, Artifact
from arcloop.errors import ArtifactError
from arcloop.sweeps import record

SEED = "seed"
_ABOUT_THE_SWEEP = ("hydra.", "sweep", "launcher", "run_dir", "resume", "overwrite")
_BEGUN = ".begun.json"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: Where it ran.
        overrides: Key -> value as given, of what it was composed from.
        config: Its resolved config; empty where it made no run.
        objective: The monitored metric of val; None: it has none.
        metrics: Name -> value, of the query split.
        failure: Why it has no result; None: it is finished.
        code: Git revision and package versions.
    """

    folder: Path
    overrides: Mapping[str, str]
    config: Mapping[str, Any]
    objective: float | None
    metrics: Mapping[str, float]
    failure: str | None
    code: Mapping[str, Any]

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
    if _is_run(folder):
        run = artifacts.read(folder, "run")
        failure = None if told is None or told.failure is None else told.failure.what
        return _finished(folder, run, failure)
    if told is not None:
        failure = told.failure.what if told.failure else "its run was removed"
        return Job(folder, _pairs(told.overrides), {}, None, {}, failure, {})
    if (folder / _BEGUN).is_file():
        pairs = _pairs(part for part in folder.name.split(",") if "=" in part)
        return Job(folder, pairs, {}, None, {}, "interrupted: the same command goes on", {})
    return None


def _is_run(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes())["kind"] == "run")
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return artifacts.read(folder, "run").kind == "run"  # which tells what is wrong with it


def _finished(folder: Path, run: Artifact, failure: str | None) -> Job:
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
    pairs, objective = _pairs(run.info["overrides"]), run.info["objective"]
    return Job(folder, pairs, run.config, objective, metrics, failure, code)


def _pairs(overrides: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        pairs[key] = value.strip("'\"")
    return pairs


def varied(jobs: Sequence[Job]) -> list[str]:
    """Return the keys that jobs have different values for, in the order they were given."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        key
        for key in keys
        if not key.startswith(_ABOUT_THE_SWEEP) and len({job.value(key) for job in jobs}) > 1
    ]

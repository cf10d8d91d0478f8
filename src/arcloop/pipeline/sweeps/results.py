"""Results of a sweep, read from its folder: jobs, and settings aggregated over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from arcloop import artifacts
from arcloop.artifacts.metrics import read_metrics
from arcloop.config.composition import quote_override
from arcloop.errors import ArtifactError
from arcloop.pipeline.sweeps.record import RECORD, JobRecord

SEED = "seed"
SWEEP_KEYS = ("hydra.", "sweep", "launcher", "run_dir", "resume", "overwrite")
"""Prefixes of overrides that configure the sweep itself and not what it compares."""
_STARTED, _CONFIG = ".begun.json", "config.yaml"
"""Equal to the constants of `arcloop.training`, which cannot be imported without torch."""


@dataclass(frozen=True)
class JobResult:
    """The result of one job of a sweep.

    Attributes:
        folder: Run directory of the job.
        given: Overrides of the job.
        swept: Keys that the sweep varies; they name the folder.
        failure: Why the job has no result; None if it finished.
        config: The resolved config; empty if the job failed before training started.
        objective: Best value of the monitored metric on val, or None.
        metrics: Name -> value, on the query split.
        code: Git revision and package versions; empty without a run.
    """

    folder: Path
    given: Sequence[str]
    swept: tuple[str, ...]
    failure: str | None
    config: Mapping[str, Any]
    objective: float | None
    metrics: Mapping[str, float]
    code: Mapping[str, Any]

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


@dataclass(frozen=True)
class Estimate:
    """Mean of a metric over seeds, with its 95% confidence interval.

    Attributes:
        mean: Mean over the seeds.
        half_width: Half width of the interval (Student's t); None for a single seed.
        values: The value of each seed.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean and its interval.

        >>> Estimate.of([0.97, 0.98, 0.99]).half_width  # doctest: +ELLIPSIS
        0.0248...
        """
        half, count = None, len(values)
        if count > 1:
            from scipy.special import stdtrit  # quantiles of Student's t

            half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(values) / math.sqrt(count)
        return cls(statistics.fmean(values), half, tuple(values))

    def __str__(self) -> str:
        half = "" if self.half_width is None else f" ± {self.half_width:.4f}"
        return f"{self.mean:.4f}{half}"


@dataclass(frozen=True)
class Setting:
    """A combination of swept values, aggregated over seeds.

    Attributes:
        values: Value of each varied key.
        jobs: One job per seed.
        finished: Number of finished jobs.
        objective: Estimate over the finished jobs; None if no job finished.
        metrics: Name -> estimate, for metrics that all finished jobs have.
    """

    values: Mapping[str, str | None]
    jobs: Sequence[JobResult]
    finished: int
    objective: Estimate | None
    metrics: Mapping[str, Estimate]

    @classmethod
    def of(cls, values: Mapping[str, str | None], jobs: Sequence[JobResult]) -> Setting:
        """Aggregate the jobs that have these values."""
        finished = [job for job in jobs if job.failure is None]
        objectives = [job.objective for job in finished if job.objective is not None]
        objective = Estimate.of(objectives) if objectives else None
        names = [n for n in (finished[0].metrics if finished else ())
                 if all(n in job.metrics for job in finished)]  # fmt: skip
        metrics = {name: Estimate.of([job.metrics[name] for job in finished]) for name in names}
        return cls(values, jobs, len(finished), objective, metrics)


@dataclass(frozen=True)
class Ranking:
    """The jobs of a sweep and the ranking of their settings.

    Attributes:
        folder: Folder of the sweep.
        jobs: All jobs, ordered by folder name.
        keys: Varied keys, without the seed.
        settings: Jobs that differ only by their seed, best objective first.
        monitor: Name of the objective, a metric of the val split.
        higher_is_better: Whether a larger objective is better.
        verb: Verb that ran the jobs.
    """

    folder: Path
    jobs: Sequence[JobResult]
    keys: Sequence[str]
    settings: Sequence[Setting]
    monitor: str
    higher_is_better: bool
    verb: str = "train"

    @classmethod
    def of(cls, folder: Path) -> Ranking:
        """Read the jobs of a sweep and rank them.

        Raises:
            ArtifactError: The folder contains no jobs, or a run in it is damaged.
        """
        return cls.of_jobs(folder, _read_jobs(folder))

    @classmethod
    def of_jobs(cls, folder: Path, jobs: Sequence[JobResult], verb: str = "train") -> Ranking:
        """Rank the jobs of a sweep."""
        keys = [key for key in _varied_keys(jobs) if key != SEED]
        groups: dict[tuple[str | None, ...], list[JobResult]] = {}
        for job in jobs:
            groups.setdefault(tuple(job.value(key) for key in keys), []).append(job)
        settings = [Setting.of(dict(zip(keys, v, strict=True)), g) for v, g in groups.items()]
        monitor = next((job.config["monitor"] for job in jobs if job.config), "objective")
        minimised = any(job.config.get("monitor_mode") == "min" for job in jobs)
        sign = 1 if minimised else -1
        settings.sort(key=lambda s: sign * s.objective.mean if s.objective else math.inf)
        return cls(folder, jobs, keys, settings, monitor, not minimised, verb)

    @property
    def failed(self) -> list[JobResult]:
        """Jobs that have no result."""
        return [job for job in self.jobs if job.failure is not None]


def _varied_keys(jobs: Sequence[JobResult]) -> list[str]:
    """Return the keys whose values differ between jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        key
        for key in keys
        if not key.startswith(SWEEP_KEYS) and len({job.value(key) for job in jobs}) > 1
    ]


def _read_jobs(sweep: Path) -> list[JobResult]:
    jobs = [job for folder in sorted(sweep.glob("*/")) if (job := _read_job(folder)) is not None]
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


def _read_job(folder: Path) -> JobResult | None:
    recorded = JobRecord.read(folder / RECORD)
    swept = tuple(recorded.swept) if recorded else ()
    failure = recorded.failure.what if recorded and recorded.failure else None
    if _is_run(folder):
        run = artifacts.read(folder, "run")
        given, objective = run.info["overrides"], run.info["objective"]
        metrics = _read_metrics(folder / "evaluation")
        return JobResult(folder, given, swept, failure, run.config, objective, metrics, run.code)
    if recorded is not None:
        failure = failure or "the run was removed"
        return JobResult(folder, recorded.overrides, swept, failure, {}, None, {}, {})
    if (folder / _STARTED).is_file():
        config = yaml.safe_load((folder / _CONFIG).read_bytes())
        failure = "interrupted: run the same command again to continue it"
        return JobResult(folder, (), (), failure, config, None, {}, {})
    return None


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

"""A setting of a sweep: its jobs differ only in their seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcloop.config.monitors import METRICS
from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.results import FINISHED, SEED, JobResult


@dataclass(frozen=True)
class Setting:
    """A combination of swept values, aggregated over seeds.

    Attributes:
        values: Value of each varied key.
        jobs: One job per seed.
        finished: Number of finished jobs.
        objective: Estimate over the finished jobs; None if no job finished.
        metrics: Name -> estimate on query, for metrics that all finished jobs have.
        val: Name -> estimate on val, for metrics that all finished jobs have.
        missing: Number of seeds without a result, compared with the other settings.
    """

    values: Mapping[str, str | None]
    jobs: Sequence[JobResult]
    finished: int
    objective: Estimate | None
    metrics: Mapping[str, Estimate]
    val: Mapping[str, Estimate]
    missing: int = 0

    @classmethod
    def of(cls, values: Mapping[str, str | None], jobs: Sequence[JobResult], seeds: int) -> Setting:
        """Aggregate the jobs that have these values; `seeds` is the expected number of seeds."""
        finished = [job for job in jobs if job.state == FINISHED]
        objectives = [job.objective for job in finished if job.objective is not None]
        objective = Estimate.of(objectives) if objectives else None
        metrics = _estimates([job.metrics for job in finished])
        val = _estimates([job.val for job in finished])
        missing = max(seeds, len(jobs)) - len(finished)
        return cls(values, jobs, len(finished), objective, metrics, val, missing)

    @property
    def text(self) -> str:
        """The values as overrides."""
        return " ".join(f"{key}={value}" for key, value in self.values.items() if value is not None)

    def by_seed(self) -> dict[str, float]:
        """Return seed -> objective of the finished jobs."""
        return {
            seed: job.objective
            for job in self.jobs
            if job.state == FINISHED
            and job.objective is not None
            and (seed := job.value(SEED)) is not None
        }


def lower_is_better(metric: str) -> bool:
    """Return whether a smaller value is better; for an unknown metric, its name decides."""
    return METRICS.get(metric) == "min" or metric.endswith(("loss", "eer"))


def _estimates(values: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Return the estimate of each metric that all jobs have."""
    names = [n for n in (values[0] if values else ()) if all(n in found for found in values)]
    return {name: Estimate.of([found[name] for found in values]) for name in names}

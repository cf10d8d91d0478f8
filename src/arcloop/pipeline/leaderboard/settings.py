"""Settings of a sweep: jobs aggregated over seeds, with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcloop.pipeline.leaderboard.jobs import SEED, JobResult, varied_keys

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom.
_T_95 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip


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
        count = len(values)
        half = None
        if count > 1:
            half = t_quantile_95(count - 1) * statistics.stdev(values) / math.sqrt(count)
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
        objective: Estimate over the finished jobs; None if no job finished.
        metrics: Name -> estimate, for metrics that all finished jobs have.
    """

    values: Mapping[str, str | None]
    jobs: Sequence[JobResult]
    objective: Estimate | None
    metrics: Mapping[str, Estimate]

    @property
    def finished(self) -> int:
        """Number of finished jobs."""
        return sum(job.failure is None for job in self.jobs)

    @property
    def label(self) -> str:
        """The values on one line."""
        pairs = (f"{short_key(key)} {short_value(v)}" for key, v in self.values.items())
        return ", ".join(pairs) or "all"


def group_by_setting(jobs: Sequence[JobResult]) -> tuple[list[str], list[Setting]]:
    """Group jobs that differ only by their seed.

    Returns:
        The varied keys without the seed, and the settings, best objective first.
    """
    keys = [key for key in varied_keys(jobs) if key != SEED]
    groups: dict[tuple[str | None, ...], list[JobResult]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.value(key) for key in keys), []).append(job)
    found = [_aggregate(dict(zip(keys, values, strict=True)), g) for values, g in groups.items()]
    sign = -1 if higher_is_better(jobs) else 1
    return keys, sorted(
        found, key=lambda s: math.inf if s.objective is None else sign * s.objective.mean
    )


def higher_is_better(jobs: Sequence[JobResult]) -> bool:
    """Return whether a larger objective is better."""
    return not any(job.config.get("monitor_mode") == "min" for job in jobs)


def _aggregate(values: Mapping[str, str | None], jobs: Sequence[JobResult]) -> Setting:
    finished = [job for job in jobs if job.failure is None]
    objectives = [job.objective for job in finished if job.objective is not None]
    names = [n for n in (finished[0].metrics if finished else ())
             if all(n in job.metrics for job in finished)]  # fmt: skip
    return Setting(
        values,
        jobs,
        Estimate.of(objectives) if objectives else None,
        {name: Estimate.of([job.metrics[name] for job in finished]) for name in names},
    )


def short_value(value: str | None) -> str:
    """Return a value short enough for a table.

    >>> short_value("0.47491026375865764"), short_value("arcface"), short_value(None)
    ('0.4749', 'arcface', '-')
    """
    if value is None:
        return "-"
    number = as_number(value)
    return value if number is None or len(value) <= 6 else f"{number:.4g}"


def short_key(key: str) -> str:
    """Return the last part of a key.

    >>> short_key("head.margin")
    'margin'
    """
    return key.rpartition(".")[2]


def as_number(value: str | None) -> float | None:
    """Return a value as a finite number, or None if it is not a finite number."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def t_quantile_95(degrees: int) -> float:
    """Return t such that the interval [-t, t] has 95% of the mass of Student's t distribution.

    Args:
        degrees: Degrees of freedom, at least 1. Above 30, the Cornish-Fisher expansion around the
            normal quantile is used (Abramowitz and Stegun, 26.7.5); its error is below 1e-4.

    >>> t_quantile_95(2), round(t_quantile_95(100), 4)
    (4.3027, 1.984)
    """
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    z = 1.959964
    first = (z**3 + z) / (4 * degrees)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)

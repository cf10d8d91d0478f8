"""Jobs that differ by their seed alone, as one: mean and confidence interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcloop.pipeline.leaderboard.jobs import SEED, Job, varied

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A metric over the seeds of a setting.

    Attributes:
        mean: Over the seeds.
        half_width: Of its 95% confidence interval; None: one seed tells none.
        values: One for each seed.
    """

    mean: float
    half_width: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean by Student's t.

        >>> Estimate.of([0.97, 0.98, 0.99]).half_width  # doctest: +ELLIPSIS
        0.0248...
        """
        count = len(values)
        half = None
        if count > 1:
            half = student_t(count - 1) * statistics.stdev(values) / math.sqrt(count)
        return cls(statistics.fmean(values), half, tuple(values))

    def __str__(self) -> str:
        half = "" if self.half_width is None else f" ± {self.half_width:.4f}"
        return f"{self.mean:.4f}{half}"


@dataclass(frozen=True)
class Setting:
    """What the sweep tried, seeds apart.

    Attributes:
        values: Value of each varied key.
        jobs: One for each seed.
        objective: Over the finished ones; None: there is none.
        metrics: Name -> estimate, of those that every finished job has.
    """

    values: Mapping[str, str | None]
    jobs: Sequence[Job]
    objective: Estimate | None
    metrics: Mapping[str, Estimate]

    @property
    def finished(self) -> int:
        """How many of its jobs are finished."""
        return sum(job.failure is None for job in self.jobs)

    @property
    def label(self) -> str:
        """Its values in a line."""
        return ", ".join(f"{shown_key(key)} {shown(v)}" for key, v in self.values.items()) or "all"


def settings_of(jobs: Sequence[Job]) -> tuple[list[str], list[Setting]]:
    """Group jobs by all that varies but the seed, the best by the objective first.

    Returns:
        Keys that vary, the seed left out, and the settings.
    """
    keys = [key for key in varied(jobs) if key != SEED]
    groups: dict[tuple[str | None, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.value(key) for key in keys), []).append(job)
    found = [_setting(dict(zip(keys, values, strict=True)), g) for values, g in groups.items()]
    sign = -1 if better_is_more(jobs) else 1
    return keys, sorted(
        found, key=lambda s: math.inf if s.objective is None else sign * s.objective.mean
    )


def better_is_more(jobs: Sequence[Job]) -> bool:
    """Whether a larger objective is better."""
    return not any(job.config.get("monitor_mode") == "min" for job in jobs)


def _setting(values: Mapping[str, str | None], jobs: Sequence[Job]) -> Setting:
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


def shown(value: str | None) -> str:
    """Return a value short enough for a table.

    >>> shown("0.47491026375865764"), shown("1e-05"), shown("arcface"), shown(None)
    ('0.4749', '1e-05', 'arcface', '-')
    """
    if value is None:
        return "-"
    number = as_number(value)
    return value if number is None or len(value) <= 6 else f"{number:.4g}"


def shown_key(key: str) -> str:
    """Return the last part of a key.

    >>> shown_key("head.margin")
    'margin'
    """
    return key.rpartition(".")[2]


def as_number(value: str | None) -> float | None:
    """Return a value as a number, None if it is none."""
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return t such that a share of `confidence` of Student's distribution lies within [-t, t].

    By bisection of its distribution function (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Args:
        degrees: Degrees of freedom, from 1.
        confidence: In (0, 1).

    >>> round(student_t(2), 3), round(student_t(30), 3)
    (4.303, 2.042)
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    angle = math.atan2(t, math.sqrt(degrees))
    cosine2 = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share

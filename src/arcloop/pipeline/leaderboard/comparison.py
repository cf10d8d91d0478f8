"""Statistics of seeds: means with intervals, and tests of the best setting against the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIGNIFICANCE = 0.05
_LARGE = 1000


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
        digits = 0 if abs(self.mean) >= _LARGE else 4  # bytes and rates
        half = "" if self.half_width is None else f" ± {self.half_width:,.{digits}f}"
        return f"{self.mean:,.{digits}f}{half}"


def paired_p_value(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Return the two-sided p value of the paired t test over shared seeds.

    Args:
        one: Seed -> value of a setting.
        other: Seed -> value of another setting.

    Returns:
        The p value in [0, 1]; None if fewer than two seeds are shared.

    >>> round(paired_p_value({"0": 0.9, "1": 0.8, "2": 0.7}, {"0": 0.8, "1": 0.6, "2": 0.6}), 4)
    0.0572
    """
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    if len(differences) < 2:
        return None
    if statistics.stdev(differences) <= 1e-12:  # equal differences, up to rounding
        return 1.0 if abs(differences[0]) <= 1e-12 else 0.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values of several tests (Holm 1979); the order is kept.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected

"""95% confidence intervals of the metrics that are computed from per-query values.

The queries of a class or of a group are not independent, so whole classes or groups are resampled:
the cluster bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section
3.8). A resample is a vector of counts, and the sums of each unit are multiplied by it. No query is
copied, so that time and memory depend on the number of units, which is bounded.

Shapes: Q queries, U units, R resamples, B resamples of a block, L levels of similarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import ndtr, stdtrit

from arcloop.evaluation.metrics.open_set import DIR_FARS
from arcloop.evaluation.metrics.retrieval import Bools, is_of_known
from arcloop.evaluation.query_results import QueryResults

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Interval = tuple[float, float]

RESAMPLES = 1000
MIN_CLASSES = 30
_BLOCK = 50
_MAX_UNITS, _MAX_LEVELS = 10_000, 1000
_STEP = 2.0**-24  # sums of multiples of it are exact, in any order, for up to 2**29 queries
_Z = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True)
class Units:
    """The units that are resampled.

    Attributes:
        kind: "groups", "classes" or "queries".
        rows: int64 [Q], unit of each query, in [0, U).
        independent: Number of independent units. If there are more than 10,000, several of them,
            chosen at random, are resampled together, and U is 10,000.
        known: Number of independent units that have a query of a known class.
        unknown: Number of independent units that have a query of an unknown class.
    """

    kind: str
    rows: Rows
    independent: int
    known: int
    unknown: int

    @classmethod
    def of(cls, results: QueryResults) -> Units:
        """Choose the units: groups if there are any, else classes, else queries.

        Classes are resampled if there are at least 30 of them. With fewer, the intervals are valid
        for these classes only, and queries are resampled.
        """
        label_Q, group_Q = results.label, results.group
        if group_Q is not None and (group_Q >= 0).any():
            own_Q = group_Q.max() + 1 + np.arange(len(group_Q))
            kind, ids_Q = "groups", np.where(group_Q >= 0, group_Q, own_Q)
        elif len(np.unique(label_Q)) >= MIN_CLASSES:
            kind, ids_Q = "classes", label_Q
        else:
            kind, ids_Q = "queries", np.arange(len(label_Q))
        ids, unit_Q = np.unique(ids_Q, return_inverse=True)
        known, unknown = (len(np.unique(unit_Q[of])) for of in (results.known, ~results.known))
        if len(ids) > _MAX_UNITS:  # the variance of the sums stays that of independent units
            unit_Q = np.random.default_rng(0).permutation(len(ids))[unit_Q] % _MAX_UNITS
        return cls(kind, unit_Q, len(ids), known, unknown)

    def trials(self, metric: str) -> int:
        """Return the number of independent units over which a metric is measured."""
        if metric == "fpir":
            return self.unknown
        return self.known if is_of_known(metric) else self.independent


def resample(results: QueryResults, units: Units) -> dict[str, Floats]:
    """Compute every metric that has an interval in each of 1,000 resamples of the queries.

    Two models that answered the same queries are resampled in the same way, so that the difference
    of the two arrays of a metric is a sample of the paired difference.

    Args:
        results: Per-query results.
        units: The units to resample.

    Returns:
        Metric -> float64 [R], without metrics that are not defined in some resample.
    """
    statistics = _statistics(results, units.rows)
    found = [statistics(counts_BU) for counts_BU in _resampled_counts(int(units.rows.max()) + 1)]
    joined = {name: np.concatenate([block[name] for block in found]) for name in found[0]}
    return {name: values_R for name, values_R in joined.items() if np.isfinite(values_R).all()}


def compute_intervals(results: QueryResults, metrics: Mapping[str, float]) -> dict[str, Interval]:
    """Return the 95% confidence interval of each metric that is computed from per-query values.

    A metric that is exactly 0 or 1 gets Wilson's interval with one trial per unit over which it is
    measured, because all its resamples are equal. A metric of another value that is equal in all
    resamples gets none.

    Args:
        results: Per-query results.
        metrics: Name -> value, as measured on all queries.
    """
    units = Units.of(results)
    intervals = {}
    for name, values_R in resample(results, units).items():
        value = metrics.get(name)
        if value in (0, 1):
            intervals[name] = wilson_interval(value, units.trials(name))
        elif value is not None and values_R.min() < values_R.max():
            low, high = percentile_interval(values_R, units.trials(name))
            intervals[name] = min(low, value), max(high, value)
    return intervals


def percentile_interval(values_R: Floats, num_units: int) -> Interval:
    """Return the 95% expanded percentile interval of bootstrapped values.

    The percentiles are those that give Student's t interval if the values are normally distributed.
    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician
    69 (2015), section 4.

    Args:
        values_R: Value in each resample.
        num_units: Number of resampled units, at least 1.

    >>> [round(end, 3) for end in percentile_interval(np.arange(1001) / 1000, 10**6)]
    [0.025, 0.975]
    """
    freedom = max(num_units - 1, 1)
    tail = float(ndtr(math.sqrt((freedom + 1) / freedom) * stdtrit(freedom, 0.025)))
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)


def wilson_interval(share: float, trials: int) -> Interval:
    """Return the 95% score interval of a proportion.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the
    American Statistical Association 22 (1927).

    Args:
        share: Observed proportion in [0, 1].
        trials: Number of independent trials, at least 1.

    >>> [round(end, 4) for end in wilson_interval(1, 100)]
    [0.963, 1.0]
    """
    weight = _Z**2 / trials
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    # At 0 and 1 one end is exact, but its rounding is not.
    return (middle - half if share > 0 else 0.0), (middle + half if share < 1 else 1.0)


def _resampled_counts(num_units: int) -> Iterator[Floats]:
    """Yield how often each of U units is drawn with replacement in each resample, [B, U]."""
    random = np.random.default_rng(0)
    first_B1 = np.arange(_BLOCK)[:, None] * num_units
    for _ in range(RESAMPLES // _BLOCK):
        cells = first_B1 + random.integers(num_units, size=(_BLOCK, num_units))
        counts = np.bincount(cells.ravel(), minlength=_BLOCK * num_units)
        yield counts.reshape(_BLOCK, num_units).astype(np.float64)


def _statistics(results: QueryResults, unit_Q: Rows) -> Callable[[Floats], dict[str, Floats]]:
    """Return the function that computes all metrics [B] for counts of the units [B, U]."""
    all_Q = np.ones(len(unit_Q))
    known_Q = results.known
    # The sum of the weights of each class is 1.
    weight_Q = known_Q / np.bincount(results.label, weights=known_Q).clip(min=1)[results.label]
    answered_Q = ~results.metrics["unknown_rate"]
    values = {
        "top1": results.correct,
        **results.metrics,
        "fpir": answered_Q,
        "fnir": ~(answered_Q & results.correct),
        "mean_class_accuracy": results.correct,
    }
    counted = {name: known_Q if is_of_known(name) else all_Q for name in values}
    counted |= {"fpir": ~known_Q, "mean_class_accuracy": weight_Q}

    def sum_by_unit(columns: Iterable[npt.NDArray[Any]]) -> Floats:
        sums = [np.bincount(unit_Q, weights=column_Q) for column_Q in columns]
        return np.asarray(np.rint(np.stack(sums, axis=1) / _STEP) * _STEP)

    totals_UM = sum_by_unit(values[name] * counted[name] for name in values)
    counts_UM = sum_by_unit(counted[name] for name in values)
    rates = {
        f"dir_at_far_{name}": statistic
        for name, far in DIR_FARS.items()
        if (statistic := _identification_rate(results, unit_Q, far)) is not None
    }

    def compute(counts_BU: Floats) -> dict[str, Floats]:
        with np.errstate(invalid="ignore"):
            means_BM = (counts_BU @ totals_UM) / (counts_BU @ counts_UM)
        means = dict(zip(values, means_BM.T, strict=True))
        return means | {name: statistic(counts_BU) for name, statistic in rates.items()}

    return compute


def _identification_rate(
    results: QueryResults, unit_Q: Rows, far: float
) -> Callable[[Floats], Floats] | None:
    """Return the function for DIR at a false accept rate; None if `dir_at_far` does not define it.

    The threshold is found again in each resample, among at most 1,000 similarities of unknown
    queries that are at least as large as a quantile of 4 times the rate.
    """
    best_Q, other_Q = np.maximum(results.best_same, results.best_other), results.best_other
    known_Q = results.known
    closed = bool(known_Q.all())
    unknown_Q = other_Q if closed else best_Q
    is_unknown_Q = np.asarray(other_Q > -np.inf) if closed else ~known_Q
    falling = np.sort(unknown_Q[is_unknown_Q])[::-1]
    if len(falling) * far < 1 or not known_Q.any():
        return None
    falling = falling[: math.ceil(4 * far * len(falling)) + 100]
    picked = np.linspace(0, len(falling) - 1, min(len(falling), _MAX_LEVELS)).astype(int)
    rising_L = np.unique(-falling[picked])  # negated, because searchsorted needs ascending values

    def count_by_level(counted_Q: Bools, levels_Q: Rows) -> csr_array:
        cells = unit_Q[counted_Q], levels_Q[counted_Q]
        return csr_array((np.ones(len(cells[0])), cells), (unit_Q.max() + 1, len(rising_L) + 1))

    # A threshold just above level l accepts the similarities that are larger than this level.
    unknown_UL = count_by_level(is_unknown_Q, np.searchsorted(rising_L, -unknown_Q, "left"))
    hits_Q = known_Q & results.best_is_right
    hits_UL = count_by_level(hits_Q, np.searchsorted(rising_L, -best_Q, "right"))
    known_U = np.bincount(unit_Q, weights=known_Q)

    def compute(counts_BU: Floats) -> Floats:
        wrong_BL, right_BL = ((counts_BU @ of_UL).cumsum(axis=1) for of_UL in (unknown_UL, hits_UL))
        level_B1 = np.argmax(wrong_BL > far * wrong_BL[:, -1:], axis=1)[:, None]
        accepted_B = np.take_along_axis(right_BL, level_B1, axis=1)[:, 0]
        defined_B = wrong_BL[:, -1] > 0
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(defined_B, accepted_B / (counts_BU @ known_U), np.nan))

    return compute

"""Compares two models on the same queries: a candidate and the incumbent that it may replace.

Shapes: Q queries, R resamples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr

from arcloop.evaluation.intervals import (
    Floats,
    Interval,
    Units,
    percentile_interval,
    resample,
    wilson_interval,
)
from arcloop.evaluation.metrics.retrieval import Bools
from arcloop.evaluation.query_results import QueryResults

_NO_QUALITY = ("num_", "threshold")
"""Prefixes of metrics whose difference says nothing about quality."""


@dataclass(frozen=True)
class Change:
    """The change of a metric.

    Attributes:
        candidate: Its value for the candidate.
        incumbent: Its value for the incumbent.
        difference: `candidate` - `incumbent`.
        interval: Ends of the paired 95% confidence interval of the difference; None if the metric
            is not computed from per-query values.
    """

    candidate: float
    incumbent: float
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Flip:
    """A query that only one of the two models answered correctly.

    Attributes:
        query_row: Row in the query split.
        label: Class of the query.
        predicted: Answer of the candidate; -1: none.
        row: Gallery row of that answer; -1: none.
        similarity: Cosine similarity to that row.
        incumbent_predicted: Answer of the incumbent; -1: none.
        incumbent_row: Gallery row of the incumbent's answer; -1: none.
        incumbent_similarity: Cosine similarity to it, of the embeddings of the incumbent.
    """

    query_row: int
    label: int
    predicted: int
    row: int
    similarity: float
    incumbent_predicted: int
    incumbent_row: int
    incumbent_similarity: float


@dataclass(frozen=True)
class ClassChange:
    """The class whose accuracy decreased most, or increased least if none decreased.

    Attributes:
        name: Name of the class.
        queries: Its queries.
        candidate: Its top-1 accuracy for the candidate.
        incumbent: Its top-1 accuracy for the incumbent.
        difference: `candidate` - `incumbent`.
    """

    name: str
    queries: int
    candidate: float
    incumbent: float
    difference: float


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with an incumbent on the same queries.

    Attributes:
        incumbent: The run, archive or model store, as given in the config.
        queries: Number of queries, Q.
        resampled: What the intervals resample: "groups", "classes" or "queries".
        metrics: Metric -> change.
        negative_flips: Number of queries that were answered correctly before and are not now.
        positive_flips: Number of queries that are answered correctly now and were not before.
        p_value: McNemar's exact two-sided test of equal top-1 accuracy, which takes queries as
            independent.
        worst_class: Class with the worst change.
        flips: The negative flips with the highest similarity to the wrong answer, most similar
            first.
        gains: The positive flips, in the same order.
    """

    incumbent: str
    queries: int
    resampled: str
    metrics: Mapping[str, Change]
    negative_flips: int
    positive_flips: int
    p_value: float
    worst_class: ClassChange
    flips: list[Flip]
    gains: list[Flip]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as plain JSON types."""
        return asdict(self)


def compare(
    candidate: QueryResults,
    incumbent: QueryResults,
    metrics: Mapping[str, float],
    incumbent_metrics: Mapping[str, float],
    *,
    name: str,
    classes: Sequence[str],
    num_flips: int,
) -> Comparison:
    """Compare two models that answered the same queries.

    Args:
        candidate: Results of the candidate.
        incumbent: Results of the incumbent for the same queries in the same order.
        metrics: Metrics of the candidate.
        incumbent_metrics: Metrics of the incumbent.
        name: Name of the incumbent.
        classes: Class names; a label is a position in the list.
        num_flips: Maximum number of `Comparison.flips`, and of `Comparison.gains`.
    """
    assert np.array_equal(candidate.label, incumbent.label)
    units = Units.of(candidate)
    after, before = resample(candidate, units), resample(incumbent, units)
    changes = {}
    for metric in metrics.keys() & incumbent_metrics.keys():
        if not metric.startswith(_NO_QUALITY):
            values = float(metrics[metric]), float(incumbent_metrics[metric])
            difference, interval = values[0] - values[1], None
            if metric in after and metric in before:
                low, high = _difference_interval(
                    after[metric] - before[metric], units.trials(metric)
                )
                interval = min(low, difference), max(high, difference)
            changes[metric] = Change(*values, difference, interval)
    lost_Q = incumbent.correct & ~candidate.correct
    won_Q = candidate.correct & ~incumbent.correct
    lost, won = int(lost_Q.sum()), int(won_Q.sum())
    return Comparison(
        incumbent=name,
        queries=len(lost_Q),
        resampled=units.kind,
        metrics={metric: changes[metric] for metric in metrics if metric in changes},
        negative_flips=lost,
        positive_flips=won,
        p_value=mcnemar_p_value(lost, won),
        worst_class=_worst_class(candidate, incumbent, classes),
        flips=_most_similar_flips(candidate, incumbent, lost_Q, candidate, num_flips),
        gains=_most_similar_flips(candidate, incumbent, won_Q, incumbent, num_flips),
    )


def mcnemar_p_value(lost: int, won: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), with the binomial distribution in place of chi-squared.

    Args:
        lost: Queries that only the first model answers correctly.
        won: Queries that only the second model answers correctly.

    >>> mcnemar_p_value(1, 9)
    0.021484375
    """
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def _difference_interval(differences_R: Floats, num_units: int) -> Interval:
    """Return the interval of a difference.

    An end of exactly 0 means that the change in this direction was not observed, not that it is
    impossible. It is replaced by the end of Wilson's interval for 0 of the independent units. If
    all resamples are equal, as with a single unit, both ends are moved by as much.
    """
    low, high = percentile_interval(differences_R, num_units)
    unseen = wilson_interval(0, num_units)[1]
    if low == high:
        return low - unseen, high + unseen
    return (low if low != 0 else -unseen), (high if high != 0 else unseen)


def _worst_class(
    candidate: QueryResults, incumbent: QueryResults, classes: Sequence[str]
) -> ClassChange:
    total_C = np.bincount(candidate.label[candidate.known])
    right_C, before_C = (
        np.bincount(results.label[results.correct], minlength=len(total_C))
        for results in (candidate, incumbent)
    )
    with np.errstate(invalid="ignore"):
        change_C = (right_C - before_C) / total_C
    worst = int(np.nanargmin(change_C))
    accuracies = float(right_C[worst] / total_C[worst]), float(before_C[worst] / total_C[worst])
    return ClassChange(classes[worst], int(total_C[worst]), *accuracies, float(change_C[worst]))


def _most_similar_flips(
    candidate: QueryResults,
    incumbent: QueryResults,
    flipped_Q: Bools,
    wrong: QueryResults,
    count: int,
) -> list[Flip]:
    """Return the flips whose answer in `wrong` is most similar."""
    rows = np.flatnonzero(flipped_Q)
    rows = rows[np.argsort(-wrong.similarity[rows], kind="stable")][:count]
    columns: list[npt.NDArray[Any]] = [rows, candidate.label[rows]]
    for results in (candidate, incumbent):
        columns += [results.predicted[rows], results.nearest[rows], results.similarity[rows]]
    return [Flip(*values) for values in zip(*(c.tolist() for c in columns), strict=True)]

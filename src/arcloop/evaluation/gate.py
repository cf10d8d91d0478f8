"""Deployment gate: compares metrics with the bounds of the config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TypedDict

from arcloop.artifacts.metrics import is_pair_list_accuracy
from arcloop.config.evaluation import BOUNDS_ON_CHANGE, GateSettings
from arcloop.evaluation.compare import Comparison
from arcloop.evaluation.intervals import Interval

_SIDES = {"min": "at least", "max": "at most"}


class GateDecision(TypedDict):
    """Whether the gate passed, and one sentence for each bound."""

    passed: bool
    reasons: list[str]


def check_gate(
    metrics: Mapping[str, float],
    settings: GateSettings,
    intervals: Mapping[str, Interval] | None = None,
    comparison: Comparison | None = None,
) -> GateDecision:
    """Decide whether a model may be deployed.

    The gate passes if every bound is met and every metric, bounded or not, is finite. It does not
    pass if the gallery has a single class, because then every answer is right.

    Args:
        metrics: Name -> value.
        settings: Bounds; None: no bound. `min_top1` is a lower bound of the metric `top1`,
            `max_eer` an upper bound of `eer`. `min_class_accuracy` is a lower bound of
            the metric of the same name, the accuracy of the worst class.
        intervals: Name -> 95% confidence interval, for `settings.use` "interval".
        comparison: Comparison with `settings.versus`.

    >>> bounds = dict.fromkeys(GateSettings.__dataclass_fields__) | {"loss_metric": "top1"}
    >>> check_gate({"top1": 0.9}, GateSettings(**bounds | {"use": "estimate", "min_top1": 0.8}))
    {'passed': True, 'reasons': ['top1 is 0.9, at least 0.8 as required.']}
    """
    reasons = [
        f"{name} is {value}; every metric must be finite."
        for name, value in metrics.items()
        if not math.isfinite(value)
    ]
    if metrics.get("num_classes") == 1:
        reasons.append("The gallery has one class, so every answer is right; add other classes.")
    passed = not reasons
    bounds = asdict(settings)
    of_lists = bounds.pop("min_pair_list_accuracy")
    if isinstance(of_lists, dict):
        bounds |= {f"min_pairs_{name}_accuracy": bound for name, bound in of_lists.items()}
    else:
        names = [*filter(is_pair_list_accuracy, metrics)] or ["pairs_accuracy"]
        bounds |= {f"min_{name}": of_lists for name in names}
    found = [
        _compare(name, bound, metrics, (intervals or {}) if settings.use == "interval" else None)
        for name, bound in bounds.items()
        if name.startswith(("min_", "max_")) and name not in BOUNDS_ON_CHANGE and bound is not None
    ]
    if comparison is not None:
        found += _check_comparison(comparison, settings)
    passed = passed and all(met for met, _ in found)
    reasons += [reason for _, reason in found]
    return {"passed": passed, "reasons": reasons or ["No bound is set."]}


def _compare(
    name: str,
    bound: float,
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval] | None,
) -> tuple[bool, str]:
    """Return whether a metric meets its bound, and a sentence that says so."""
    side, _, metric = name.partition("_")
    metric = name if name == "min_class_accuracy" else metric
    if metric not in metrics:
        return False, f"{metric} was not measured, but {_SIDES[side]} {bound:g} is required."
    value, subject = metrics[metric], metric
    if intervals is not None and metric in intervals:
        value = intervals[metric][0 if side == "min" else 1]
        end = "lower" if side == "min" else "upper"
        subject = f"The {end} end of the 95% interval of {metric}"
    elif intervals is not None:
        subject = f"{metric} (which has no interval)"
    return _check_bound(subject, value, side, bound)


def _check_bound(subject: str, value: float, side: str, bound: float) -> tuple[bool, str]:
    """Return whether a value meets a bound of the side "min" or "max", and a sentence."""
    met = value >= bound if side == "min" else value <= bound
    words = f"{_SIDES[side]} {bound:g}"
    required = f"{words} as required" if met else f"but {words} is required"
    return met, f"{subject} is {value:.6g}, {required}."


def _check_comparison(comparison: Comparison, settings: GateSettings) -> list[tuple[bool, str]]:
    """Return whether each bound on the change is met, and sentences that describe the change."""
    lost, worst = comparison.negative_flips, comparison.worst_class
    summary = (
        f"Compared with {comparison.incumbent}: {_describe('top1', comparison)}; {lost} of"
        f" {comparison.queries} queries became wrong and {comparison.positive_flips} became right"
        f" (McNemar's exact test: p = {comparison.p_value:.2g})."
    )
    found = [(True, summary)]
    if settings.max_loss is not None:
        metric = settings.loss_metric
        change = comparison.metrics.get(metric)
        low = -math.inf if change is None or change.interval is None else change.interval[0]
        met = low >= -settings.max_loss
        excluded = "is excluded as required" if met else "must be excluded, but is not"
        text = _describe(metric, comparison)
        found.append((met, f"{text}: a loss of more than {settings.max_loss:g} {excluded}."))
    of_worst = f"the accuracy of the class {worst.name} ({worst.queries} queries)"
    for subject, value, bound in (
        ("The share of queries that became wrong", lost / comparison.queries,
         settings.max_negative_flips),
        (f"The decrease of {of_worst}", max(0.0, -worst.difference), settings.max_class_loss),
    ):  # fmt: skip
        if bound is not None:
            found.append(_check_bound(subject, value, "max", bound))
    return found


def _describe(metric: str, comparison: Comparison) -> str:
    change = comparison.metrics.get(metric)
    if change is None:
        return f"{metric} was not measured for both models"
    if change.interval is None:
        return f"{metric} changed by {change.difference:+.6g}"
    low, high = change.interval
    return f"{metric} changed by {change.difference:+.6g} (95% interval {low:+.6g} to {high:+.6g})"

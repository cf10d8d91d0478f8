"""Deployment gate: compares metrics with the bounds of the config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TypedDict

from arcloop.config.schema import GateSettings


class GateDecision(TypedDict):
    """Whether the gate passed, and one sentence for each bound."""

    passed: bool
    reasons: list[str]


def check_gate(metrics: Mapping[str, float], settings: GateSettings) -> GateDecision:
    """Decide whether a model may be deployed.

    The gate passes if every bound is met and every metric, bounded or not, is finite. It does not
    pass if the gallery has a single class, because then every answer is right.

    Args:
        metrics: Name -> value.
        settings: Bounds; None: no bound. `min_top1` is a lower bound of the metric `top1`,
            `max_eer` an upper bound of `eer`. `min_class_accuracy` is a lower bound of
            the metric of the same name, the accuracy of the worst class.

    >>> check_gate({"top1": 0.9}, GateSettings(
    ...     min_top1=0.8, min_recall_at_5=None, min_map_at_r=None, max_eer=None,
    ...     min_class_accuracy=None, min_pair_accuracy=None, min_index_recall_at_10=None))
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
    for name, bound in asdict(settings).items():
        if bound is None:
            continue
        side, _, metric = name.partition("_")
        metric = name if name == "min_class_accuracy" else metric
        met, reason = _compare(metric, metrics.get(metric), side, bound)
        passed = passed and met
        reasons.append(reason)
    return {"passed": passed, "reasons": reasons or ["No bound is set."]}


def _compare(metric: str, value: float | None, side: str, bound: float) -> tuple[bool, str]:
    """Return whether a metric meets its bound, and a sentence that says so."""
    words = "at least" if side == "min" else "at most"
    if value is None:
        return False, f"{metric} was not measured, but {words} {bound:g} is required."
    met = value >= bound if side == "min" else value <= bound
    return met, (
        f"{metric} is {value:.6g}, {words} {bound:g} as required."
        if met
        else f"{metric} is {value:.6g}, but {words} {bound:g} is required."
    )

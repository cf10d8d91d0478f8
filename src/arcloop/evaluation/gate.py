"""May this model be deployed?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TypedDict

from arcloop.config.schema import GateSettings


class Verdict(TypedDict):
    """The gate's decision and a sentence for each thing it looked at."""

    passed: bool
    reasons: list[str]


def gate(metrics: Mapping[str, float], settings: GateSettings) -> Verdict:
    """Compare metrics with the bounds set on them.

    Passes if every bound is met and no metric, bounded or not, is NaN or infinite.

    Args:
        metrics: Name -> value.
        settings: Bounds, None where there is none. `min_top1` bounds the metric `top1` from below,
            `max_eer` bounds `eer` from above; `min_class_accuracy` is a metric itself, the accuracy
            of the worst class, and bounded from below.

    >>> gate({"top1": 0.9}, GateSettings(
    ...     min_top1=0.8, min_recall_at_5=None, min_map_at_r=None, max_eer=None,
    ...     min_class_accuracy=None, min_pair_accuracy=None, min_index_recall_at_10=None))
    {'passed': True, 'reasons': ['top1 is 0.9, at least 0.8 as required.']}
    """
    reasons = [
        f"{name} is {value}: a metric that is not finite never passes."
        for name, value in metrics.items()
        if not math.isfinite(value)
    ]
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
    words = "at least" if side == "min" else "at most"
    if value is None:
        return False, f"{metric} could not be measured, and {words} {bound:g} is required."
    met = value >= bound if side == "min" else value <= bound
    return met, (
        f"{metric} is {value:.6g}, {words} {bound:g} as required."
        if met
        else f"{metric} is {value:.6g}, but {words} {bound:g} is required."
    )

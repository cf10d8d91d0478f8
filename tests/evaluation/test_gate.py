import math

import pytest

from arcloop.config.evaluation import GateSettings
from arcloop.evaluation import check_gate

METRICS = {
    "top1": 0.99,
    "recall_at_5": 0.995,
    "map_at_r": 0.9,
    "eer": 0.02,
    "min_class_accuracy": 0.9,
    "pair_accuracy": 0.97,
    "index_recall_at_10": 0.98,
}
NO_BOUNDS = dict.fromkeys(GateSettings.__dataclass_fields__)
NO_BOUNDS |= {"use": "estimate", "loss_metric": "top1"}


def bounds(**set_ones):
    return GateSettings(**NO_BOUNDS | set_ones)


@pytest.mark.parametrize(
    ("name", "metric", "good", "bad"),
    [
        ("min_top1", "top1", 0.99, 0.991),
        ("min_recall_at_5", "recall_at_5", 0.9, 1),
        ("min_map_at_r", "map_at_r", 0.9, 0.95),
        ("max_eer", "eer", 0.02, 0.01),
        ("min_class_accuracy", "min_class_accuracy", 0.9, 0.95),
        ("min_pair_accuracy", "pair_accuracy", 0.95, 0.98),
        ("min_index_recall_at_10", "index_recall_at_10", 0.98, 0.99),
    ],
)
def test_each_bound_decides(name, metric, good, bad):
    decision = check_gate(METRICS, bounds(**{name: good}))
    assert decision["passed"]
    (reason,) = decision["reasons"]
    assert reason.startswith(f"{metric} is {METRICS[metric]:g}, ")
    assert f"{good:g}" in reason
    decision = check_gate(METRICS, bounds(**{name: bad}))
    assert not decision["passed"]
    (reason,) = decision["reasons"]
    assert f"{METRICS[metric]:g}, but" in reason
    assert f"{bad:g} is required" in reason

    missing = {key: value for key, value in METRICS.items() if key != metric}
    decision = check_gate(missing, bounds(**{name: good}))
    assert not decision["passed"]
    assert metric in decision["reasons"][0]


def test_every_bound_is_tested_above():
    assert {n for n in NO_BOUNDS if n.startswith("min_") or n == "max_eer"} == {
        "min_top1", "min_recall_at_5", "min_map_at_r", "max_eer", "min_class_accuracy",
        "min_pair_accuracy", "min_index_recall_at_10",
        "min_pair_list_accuracy",  # in pairs/test_pairs.py
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["top1", "map_at_r", "anything"])
def test_metrics_that_are_not_finite_never_pass(value, metric):
    decision = check_gate(METRICS | {metric: value}, bounds(min_top1=0.5))
    assert not decision["passed"]
    assert any(reason.startswith(f"{metric} is {value}; ") for reason in decision["reasons"])
    assert not check_gate(METRICS | {metric: value}, bounds())["passed"]


def test_one_missed_bound_is_enough_and_all_bounds_are_reported():
    decision = check_gate(METRICS, bounds(min_top1=0.5, max_eer=0.001, min_map_at_r=0.2))
    assert not decision["passed"]
    assert len(decision["reasons"]) == 3


def test_without_bounds_finite_metrics_pass():
    assert check_gate(METRICS, bounds()) == {"passed": True, "reasons": ["No bound is set."]}


def test_a_gallery_of_one_class_does_not_pass():
    decision = check_gate(METRICS | {"num_classes": 1}, bounds(min_top1=0.5))
    assert not decision["passed"]
    assert decision["reasons"][0].startswith("The gallery has one class, so every answer is right")
    assert check_gate(METRICS | {"num_classes": 2}, bounds(min_top1=0.5))["passed"]

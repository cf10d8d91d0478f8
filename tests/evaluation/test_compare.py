"""Two models on the same queries, compared with counts by hand and with scipy."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tests.evaluation.test_gate import bounds
from tests.evaluation.test_intervals import results

from arcloop.errors import ConfigError
from arcloop.evaluation import check_gate
from arcloop.evaluation.compare import compare, mcnemar_p_value
from arcloop.evaluation.intervals import wilson_interval

CLASSES = [f"c{label}" for label in range(100)]


def compared(now, before, labels, *, num_flips=9, **metrics):
    """Compare two arrays of correct answers; `metrics` are (candidate, incumbent) values."""
    now, before = np.asarray(now), np.asarray(before)
    pair = [
        results(correct, labels, **{name: values[number] for name, values in metrics.items()})
        for number, correct in enumerate((now, before))
    ]
    values = [
        {"top1": float(r.correct.mean()), "eer": 0.25 + number, "num_queries": len(now)}
        | {name: float(pair_of[number].mean()) for name, pair_of in metrics.items()}
        for number, r in enumerate(pair)
    ]
    return compare(*pair, *values, name="runs/old", classes=CLASSES, num_flips=num_flips)


@pytest.fixture(scope="module")
def answers():
    """1,000 queries of 100 classes; 60 became wrong and 40 became right."""
    random = np.random.default_rng(0)
    before = random.random(1000) < 0.9
    now = before.copy()
    now[random.permutation(np.flatnonzero(before))[:60]] = False
    now[random.permutation(np.flatnonzero(~before))[:40]] = True
    return now, before, random.integers(100, size=1000)


def test_flips_are_counted(answers):
    now, before, labels = answers
    found = compared(*answers)
    assert (found.queries, found.negative_flips, found.positive_flips) == (1000, 60, 40)
    assert found.metrics["top1"].difference == pytest.approx(-0.02)
    assert found.p_value == pytest.approx(stats.binomtest(40, 100).pvalue, abs=1e-12)
    changes = [now[labels == c].mean() - before[labels == c].mean() for c in range(100)]
    assert found.worst_class.difference == pytest.approx(min(changes))
    assert found.worst_class.name == f"c{np.argmin(changes)}"
    assert found.worst_class.queries == (labels == np.argmin(changes)).sum()
    assert len(found.flips) == 9
    assert all(before[flip.query_row] and not now[flip.query_row] for flip in found.flips)
    assert json.loads(json.dumps(found.as_dict()))["negative_flips"] == 60


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 3), (5, 30), (400, 350)])
def test_mcnemar_equals_the_binomial_test_of_scipy(lost, won):
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1
    assert mcnemar_p_value(lost, won) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_that_of_paired_differences():
    """Scipy's bootstrap of the differences; both models share what makes a query hard."""
    random = np.random.default_rng(0)
    hard = random.random(2000)
    now, before = (np.clip(hard + random.normal(m, 0.05, 2000), 0, 1) for m in (0.01, 0))
    found = compared(hard > 0.5, hard > 0.5, np.zeros(2000, int),
                     map_at_r=(now.astype(np.float32), before.astype(np.float32)))  # fmt: skip
    expected = stats.bootstrap(
        (now - before,), np.mean, n_resamples=4000, method="percentile", rng=random
    ).confidence_interval
    width = expected.high - expected.low
    interval = found.metrics["map_at_r"].interval
    assert np.abs(np.subtract(interval, expected)).max() < 0.08 * width
    assert width < 0.01  # that of one model alone is 0.025


def test_the_paired_interval_covers_the_truth(monkeypatch):
    """Of 300 simulated comparisons with dependent classes; the standard error is 1.3%."""
    random = np.random.default_rng(3)
    monkeypatch.setattr("arcloop.evaluation.intervals.RESAMPLES", 400)
    labels, covered = np.repeat(np.arange(60), 6), []
    for _ in range(300):
        lost, won = (random.beta(1, 9, 60)[labels] for _ in range(2))
        before = random.random(360) < 0.8
        now = np.where(before, random.random(360) >= lost, random.random(360) < won)
        truth = -0.8 * 0.1 + 0.2 * 0.1
        low, high = compared(now, before, labels).metrics["top1"].interval
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_equal_answers_do_not_exclude_a_difference():
    for count in (50, 5000):
        found = compared(np.ones(count, bool), np.ones(count, bool), np.zeros(count, int))
        unseen = wilson_interval(0, count)[1]
        assert found.metrics["top1"].interval == (-unseen, unseen)
        assert (found.p_value, found.negative_flips, found.flips) == (1, 0, [])
        decision = check_gate({"top1": 1.0}, bounds(versus="runs/old", max_loss=0.001), {}, found)
        assert decision["passed"] is (count == 5000)


def test_one_video_does_not_make_a_difference_certain():
    """All resamples of a single group are equal."""
    pair = [
        results(np.arange(100) < right, [0] * 100, groups=np.zeros(100, int)) for right in (90, 80)
    ]
    values = [{"top1": float(r.correct.mean())} for r in pair]
    found = compare(*pair, *values, name="runs/old", classes=CLASSES, num_flips=9)
    unseen = wilson_interval(0, 1)[1]
    assert found.metrics["top1"].interval == pytest.approx((0.1 - unseen, 0.1 + unseen))


def test_metrics_without_values_of_queries_have_no_interval(answers):
    found = compared(*answers).metrics
    assert set(found) == {"top1", "eer"}
    assert (found["eer"].difference, found["eer"].interval) == (-1, None)


def test_bounds_on_the_change(answers):
    found = compared(*answers)
    low = found.metrics["top1"].interval[0]
    assert -0.045 < low < -0.035

    def decided(**changed):
        return check_gate({"top1": 0.9}, bounds(versus="runs/old", **changed), {}, found)

    first = decided()["reasons"][0]
    assert first.startswith("Compared with runs/old: top1 changed by -0.02 (95% interval -0.0")
    assert "60 of 1000 queries became wrong and 40 became right" in first
    worst = -found.worst_class.difference
    for name, bound, text in (
        ("max_loss", -low, "a loss of more than"),
        ("max_negative_flips", 0.06, "The share of queries that became wrong is 0.06"),
        ("max_class_loss", worst, f"The decrease of the accuracy of the class {CLASSES[0][0]}"),
    ):
        passed, failed = decided(**{name: bound}), decided(**{name: bound - 0.001})
        assert passed["passed"]
        assert not failed["passed"]
        assert text in passed["reasons"][1]
        assert passed["reasons"][1].endswith("as required.")
        assert text in failed["reasons"][1]
        assert not failed["reasons"][1].endswith("as required.")
    missing = decided(max_loss=1, loss_metric="map_at_r")
    assert not missing["passed"]
    assert "map_at_r was not measured for both models" in missing["reasons"][1]


def test_a_bound_on_the_change_needs_another_model():
    for name in ("max_loss", "max_negative_flips", "max_class_loss"):
        with pytest.raises(ConfigError, match=rf"evaluate.gate.{name}"):
            bounds(**{name: 0.1})


def test_ends_of_intervals_are_compared_with_bounds():
    metrics, ends = {"top1": 0.9, "eer": 0.02}, {"top1": (0.88, 0.92)}
    assert check_gate(metrics, bounds(min_top1=0.89), ends)["passed"]
    decision = check_gate(metrics, bounds(use="interval", min_top1=0.89), ends)
    assert not decision["passed"]
    assert decision["reasons"] == [
        "The lower end of the 95% interval of top1 is 0.88, but at least 0.89 is required."
    ]
    assert check_gate(metrics, bounds(use="interval", min_top1=0.88), ends)["passed"]
    ends["eer"] = (0.01, 0.03)
    assert not check_gate(metrics, bounds(use="interval", max_eer=0.02), ends)["passed"]
    decision = check_gate(metrics, bounds(use="interval", max_eer=0.02), {})
    assert decision["passed"]
    assert decision["reasons"] == ["eer (which has no interval) is 0.02, at most 0.02 as required."]


def test_the_order_of_flips_is_that_of_similarity():
    pair = [results(c, [0] * 4) for c in ([False] * 4, [True] * 4)]
    pair[0] = replace(pair[0], similarity=np.array([0.1, 0.9, 0.5, 0.9], np.float32))
    found = compare(*pair, {"top1": 0.0}, {"top1": 1.0}, name="x", classes=["a"], num_flips=3)
    assert [flip.query_row for flip in found.flips] == [1, 3, 2]

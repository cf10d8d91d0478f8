import csv
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.config.monitors import VAL_METRICS
from arcloop.data import Store
from arcloop.evaluation.metrics.sample import sampled_rows
from arcloop.training import val_metrics
from arcloop.training.val_metrics import leave_one_out_metrics

WORST = {
    "val_map_at_r": 0, "val_top1": 0, "val_recall_at_5": 0, "val_eer": 1, "val_margin": -2,
}  # fmt: skip


def make_rows(seed, rows, classes, spread=1.0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    embeddings = random.normal(size=(classes, 6))[labels] + spread * random.normal(size=(rows, 6))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), labels


def loop(embeddings, labels, queries=None):
    """Compute the metrics of a ranking one query at a time, in float64."""
    embeddings = embeddings.astype(np.float64)
    counted = [i for i in range(len(labels)) if (labels == labels[i]).sum() > 1]
    found = []
    for i in counted if queries is None else queries:
        others = [j for j in range(len(labels)) if j != i]
        others.sort(key=lambda j: -(embeddings[i] @ embeddings[j]))
        right = [labels[j] == labels[i] for j in others]
        relevant = sum(right)
        precisions = [sum(right[: r + 1]) / (r + 1) for r in range(relevant) if right[r]]
        similarity = [embeddings[i] @ embeddings[j] for j in others]
        other = similarity[right.index(False)] if False in right else -1
        found.append(
            (
                sum(precisions) / relevant,
                right[0],
                any(right[:5]),
                similarity[right.index(True)] - other,
            )
        )
    names = ("val_map_at_r", "val_top1", "val_recall_at_5", "val_margin")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True)) if found else {}


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_the_metrics_of_the_ranking_equal_a_loop(seed, rows, classes):
    embeddings, labels = make_rows(seed, rows, classes)
    found = leave_one_out_metrics(embeddings, labels)
    assert found.keys() == VAL_METRICS.keys() == WORST.keys()
    expected = loop(embeddings, labels) or WORST
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_the_eer_equals_that_of_sklearn():
    embeddings, labels = make_rows(0, 400, 7)
    first, second = np.triu_indices(len(labels), 1)
    far, tar, _ = roc_curve(
        labels[first] == labels[second], (embeddings @ embeddings.T)[first, second]
    )
    crossing = np.abs(far - (1 - tar)).argmin()
    assert 0.05 < far[crossing] < 0.4
    assert leave_one_out_metrics(embeddings, labels)["val_eer"] == pytest.approx(
        far[crossing], abs=1e-3
    )


def test_a_large_split_is_sampled_with_a_fixed_seed(monkeypatch):
    embeddings, labels = make_rows(1, 300, 20)
    full = leave_one_out_metrics(embeddings, labels)
    monkeypatch.setattr(val_metrics, "_MAX_RANKED_QUERIES", 90)
    monkeypatch.setattr(val_metrics, "_MAX_COMPARED_QUERIES", 90)
    found = leave_one_out_metrics(embeddings, labels)
    expected = loop(embeddings, labels, sampled_rows(300, 90))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found != full
    assert found["val_eer"] == pytest.approx(full["val_eer"], abs=0.05)


@pytest.mark.parametrize(("rows", "classes"), [(30_000, 10_000), (30_000, 2)])
def test_memory_is_bounded(rows, classes):
    """All pairs would take 3.6 GB, and all neighbours of two large classes as much."""
    embeddings, labels = make_rows(0, rows, classes)
    tracemalloc.start()
    try:
        leave_one_out_metrics(embeddings, labels)
        assert tracemalloc.get_traced_memory()[1] < 250 * 2**20
    finally:
        tracemalloc.stop()


def test_the_best_logged_value_is_that_of_the_exported_model(in_tmp):
    assert main(["train", *SMALL, "callbacks=export_only", "run_dir=run"]) == 0
    with open("run/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val_top1"]]
    assert len(rows) == 2
    best = max(rows, key=lambda row: float(row["val_map_at_r"]))
    (store,) = (in_tmp / "stores").glob("synthetic-*")
    images, labels = Store.open(store).gather("val", np.arange(60))
    with torch.no_grad():
        embeddings = torch.jit.load("run/model.pt")(torch.from_numpy(images).permute(0, 3, 1, 2))
    expected = loop(embeddings.numpy(), labels)
    assert {name: float(best[name]) for name in expected} == pytest.approx(expected, abs=1e-5)


def test_every_metric_is_the_worst_if_no_class_has_two_rows():
    assert leave_one_out_metrics(np.ones((3, 1), np.float32), np.arange(3)) == WORST


def test_every_metric_is_the_worst_if_an_embedding_is_not_finite():
    rows = np.array([[1, 0], [1, 0], [np.nan, 0]], np.float32)
    assert leave_one_out_metrics(rows, np.zeros(3, np.int64)) == WORST


def test_a_split_with_one_class_has_no_other_row():
    rows = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    found = leave_one_out_metrics(rows, np.zeros(3, np.int64))
    assert found["val_margin"] == pytest.approx((0 + 1 + 1) / 3 + 1)
    assert found["val_eer"] == 1
    assert found["val_map_at_r"] == 1

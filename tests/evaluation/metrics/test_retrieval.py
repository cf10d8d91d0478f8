"""Each metric against its definition, written as loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_r_precision,
    retrieval_reciprocal_rank,
)

from arcloop.evaluation.metrics.retrieval import (
    average_precision_at_r,
    ndcg_at_k,
    neighbour_overlap,
    precision_at_k,
    r_precision,
    recall_at_k,
    reciprocal_rank,
)

shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))


@given(data=st.data(), shape=shapes, k=st.integers(1, 8))
def test_recall_at_k(data, shape, k):
    found = data.draw(arrays(np.int64, shape, elements=st.integers(-1, 3)))
    labels = data.draw(arrays(np.int64, shape[0], elements=st.integers(0, 3)))
    expected = [label in row[:k].tolist() for row, label in zip(found, labels, strict=True)]
    assert recall_at_k(found, labels, k).tolist() == expected


@given(data=st.data(), shape=shapes)
def test_precisions_at_r(data, shape):
    same = data.draw(arrays(np.bool_, shape))
    relevant = data.draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1])))
    for row, r, average, precision in zip(
        same.tolist(),
        relevant.tolist(),
        average_precision_at_r(same, relevant),
        r_precision(same, relevant),
        strict=True,
    ):
        if r == 0:
            assert average == precision == 0
            continue
        total = 0.0
        for i in range(1, r + 1):
            if row[i - 1]:
                total += sum(row[:i]) / i
        assert abs(average - total / r) < 1e-12
        assert abs(precision - sum(row[:r]) / r) < 1e-12


def test_a_perfect_and_a_reversed_ranking():
    same = np.array([[True, True, False, False], [False, False, True, True]])
    relevant = np.array([2, 2])
    assert average_precision_at_r(same, relevant).tolist() == [1, 0]
    assert r_precision(same, relevant).tolist() == [1, 0]


@given(data=st.data(), queries=st.integers(1, 4), k=st.integers(1, 5))
def test_overlap(data, queries, k):
    order = st.permutations(range(8))
    exact = np.array([data.draw(order)[:k] for _ in range(queries)])
    found = np.array([[*data.draw(order)[: k - 1], -1] for _ in range(queries)])
    expected = [len({*a} & {*b}) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    assert np.allclose(neighbour_overlap(found, exact), expected, atol=1e-12)


@given(data=st.data(), shape=shapes, k=st.integers(1, 8))
def test_precision_at_k(data, shape, k):
    found = data.draw(arrays(np.int64, shape, elements=st.integers(-1, 3)))
    labels = data.draw(arrays(np.int64, shape[0], elements=st.integers(0, 3)))
    expected = [row[:k].tolist().count(label) / k for row, label in zip(found, labels, strict=True)]
    assert precision_at_k(found, labels, k).tolist() == expected


@given(data=st.data(), rows=st.integers(1, 12), k=st.integers(1, 14))
def test_a_whole_ranking_scores_as_in_torchmetrics(data, rows, k):
    same = data.draw(arrays(np.bool_, (3, rows)))
    labels, relevant = np.zeros(3, np.int64), same.sum(axis=1)
    neighbours = np.where(same, 0, 1)
    falling = torch.arange(rows, 0, -1).float()
    found = {
        retrieval_hit_rate: recall_at_k(neighbours, labels, k),
        retrieval_precision: precision_at_k(neighbours, labels, k),
        retrieval_normalized_dcg: ndcg_at_k(same, relevant, k),
        retrieval_reciprocal_rank: reciprocal_rank(same),
        retrieval_r_precision: r_precision(same, relevant),
    }
    for metric, values in found.items():
        ranks = {"top_k": k} if values is not found[retrieval_r_precision] else {}
        if metric is retrieval_reciprocal_rank:
            ranks = {}
        for query in range(3):
            expected = metric(falling, torch.from_numpy(same[query]), **ranks)
            assert abs(values[query] - float(expected)) < 1e-6, metric.__name__

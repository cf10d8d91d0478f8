"""Each metric against its definition, written as loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arcloop.evaluation.retrieval_metrics import (
    average_precision_at_r,
    overlap,
    r_precision,
    recall_at_k,
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
    assert np.allclose(overlap(found, exact), expected, atol=1e-12)

"""The error-versus-reject characteristic against a loop that removes one query after another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.evaluation.metrics.quality import error_versus_reject, reject_metrics

QUERIES = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40)


@given(QUERIES)
def test_curve_equals_removing_the_worst_query_again_and_again(queries):
    left, expected = list(queries), []
    while left:
        expected.append(sum(wrong for wrong, _ in left) / len(left))
        del left[min(range(len(left)), key=lambda row: left[row][1])]  # the first of equal ones
    wrong, quality = (np.array(column) for column in zip(*queries, strict=True))
    assert error_versus_reject(wrong, quality.astype(np.float32)) == pytest.approx(expected)


def test_a_perfect_quality_removes_all_mistakes_first():
    wrong = np.arange(1000) % 10 == 0
    quality = np.where(wrong, 0.0, 1.0)
    expected = {"error_at_reject_10pct": 0.0, "error_at_reject_20pct": 0.0}
    assert reject_metrics(wrong, quality, np.full(len(wrong), True)) == expected
    assert error_versus_reject(wrong, quality)[50] == pytest.approx(50 / 950)

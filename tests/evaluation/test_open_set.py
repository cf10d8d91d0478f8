"""DIR at FAR against its definition; that of whole judgements is in test_judge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.evaluation.metrics.open_set import OpenSetCounts

query = st.tuples(st.integers(-4, 4), st.booleans(), st.integers(-4, 4), st.booleans())


def counts(queries):
    found = OpenSetCounts()
    best, right, other, known = (np.array(column) for column in zip(*queries, strict=True))
    found.add(best / 4, right & known, other / 4, known)
    return found


@given(st.lists(query, min_size=1, max_size=40), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_by_hand(queries, far):
    absent = [best / 4 for best, _, _, known in queries if not known]
    unknown = absent or [other / 4 for _, _, other, _ in queries]
    known = [(right, best / 4) for best, right, _, known in queries if known]
    rate = counts(queries).dir_at_far(far)
    if not known or len(unknown) * far < 1:
        assert rate is None
        return
    allowed = [
        threshold
        for threshold in np.arange(-4, 6) / 4
        if np.mean([score >= threshold for score in unknown]) <= far
    ]
    expected = np.mean([right and best >= min(allowed) for right, best in known])
    assert rate == pytest.approx(expected)


@given(st.lists(query, min_size=2, max_size=40), st.integers(1, 39))
def test_parts_add_up(queries, split):
    whole, parts = counts(queries), OpenSetCounts()
    for part in (queries[:split], queries[split:]):
        if part:
            parts.merge(counts(part))
    assert parts.metrics() == whole.metrics()


def test_queries_without_a_row_of_another_class_are_no_impostors():
    found = OpenSetCounts()
    right = np.ones(20, bool)
    found.add(np.full(20, 0.9), right, np.full(20, -np.inf), right)
    assert found.metrics() == {}

"""Votes and class prototypes compared with loops."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.evaluation.conftest import cut

from arcloop.evaluation.metrics.answers import Prototypes, vote


@given(st.lists(st.lists(st.integers(-1, 3), min_size=6, max_size=6), min_size=1, max_size=4))
def test_the_most_frequent_class_wins_and_the_nearest_of_equally_frequent(neighbours):
    for labels, found in zip(neighbours, vote(np.array(neighbours)), strict=True):
        counts = Counter(label for label in labels if label >= 0)  # in the order of the ranks
        assert found == (counts.most_common(1)[0][0] if counts else -1)


def rows_of_classes(seed, labels, dim=6):
    random = np.random.default_rng(seed)
    rows = np.random.default_rng(1).standard_normal((9, dim))[labels]
    rows = rows + random.standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@effort(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    leave_one_out=st.booleans(),
)
def test_prototypes_equal_their_definition(seed, labels, chunks, leave_one_out):
    """Also a gallery of one class, classes of one row, and queries that are gallery rows."""
    labels_G = np.array(labels)
    gallery = rows_of_classes(seed, labels_G)
    labels_Q = labels_G if leave_one_out else np.array([0, 5, 8])
    queries = gallery if leave_one_out else rows_of_classes(seed + 1, labels_Q)
    prototypes = Prototypes(lambda: cut(gallery, labels_G, chunks), labels_G)
    found = prototypes.predict(queries, labels_Q, np.full(len(queries), leave_one_out))
    for query in range(len(queries)):
        best = {}
        for label in sorted(set(labels)):
            rows = labels_G == label
            if leave_one_out:
                rows[query] = False
            if rows.any():
                mean = gallery[rows].astype(float).mean(axis=0)
                best[label] = queries[query] @ mean / np.linalg.norm(mean)
        if best:
            assert best[found[query]] == pytest.approx(max(best.values()), abs=1e-6)
        else:
            assert found[query] == -1

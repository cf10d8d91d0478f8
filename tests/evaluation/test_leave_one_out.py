"""Queries in the gallery, compared with the similarity matrix without its diagonal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.evaluation.conftest import CORNERS, exact, labelled_corners
from tests.evaluation.test_evaluator import ELSEWHERE, evaluated, oracle, sizes

from arcloop.errors import DataError
from arcloop.evaluation.metrics.verification import SimilarityHistogram, least_similarities


@st.composite
def galleries_with_queries(draw):
    """A gallery, some of its rows as queries, and some queries that are not in it."""
    rows, labels = draw(labelled_corners(3, st.integers(2, 25)))
    own = np.array(draw(st.lists(st.integers(-1, len(labels) - 1), min_size=1, max_size=12)))
    others, other_labels = draw(labelled_corners(3, st.just(len(own))))
    there = own >= 0
    queries = (
        np.where(there[:, None], rows[own], others),
        np.where(there, labels[own], other_labels),
    )
    return queries, (rows, labels), own


def pairs_by_definition(queries, gallery, left):
    """Pairs of each query and the gallery rows that it is compared with."""
    expected = SimilarityHistogram()
    for query, label, rows in zip(*queries, left, strict=True):
        for row in rows:
            place = np.flatnonzero(least_similarities() <= float(query @ gallery[0][row]))[0]
            counts = expected.same if label == gallery[1][row] else expected.different
            counts[place] += 1
    return expected


@effort(max_examples=40, deadline=None)
@given(galleries_with_queries(), sizes, sizes)
def test_no_metric_counts_a_query_as_its_own_neighbour(drawn, batches, chunks):
    queries, gallery, own = drawn
    result = evaluated(queries, gallery, own=own, batches=batches, chunks=chunks, num_mistakes=99)
    expected = oracle(queries, gallery, 0.5, own)
    assert result.metrics.keys() - ELSEWHERE == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12), name
    left = [[row for row in range(len(gallery[1])) if row != itself] for itself in own]
    pairs = pairs_by_definition(queries, gallery, left)
    assert np.array_equal(result.pairs.same, pairs.same)
    assert np.array_equal(result.pairs.different, pairs.different)
    assert (result.metrics | result.not_measurable)["eer"] == pairs.eer()
    for mistake in result.mistakes:
        assert own[mistake.query_row] not in mistake.neighbour_rows


@effort(max_examples=40, deadline=None)
@given(labelled_corners(3, st.integers(2, 25)), st.integers(0, 10**6))
def test_the_order_of_queries_changes_nothing(gallery, seed):
    """Queries are a permutation of a gallery with equal rows."""
    rows, labels = gallery
    own = np.random.default_rng(seed).permutation(len(labels))
    result = evaluated((rows[own], labels[own]), gallery, own=own)
    expected = oracle((rows[own], labels[own]), gallery, 0.5, own)
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12), name


def test_without_own_rows_every_query_finds_itself():
    rows = np.eye(4, dtype=np.float32)  # no two of them alike
    labels = np.array([0, 1, 2, 0])
    gallery = rows, labels
    assert evaluated(gallery, gallery).metrics["top1"] == 1
    alone = evaluated(gallery, gallery, own=np.arange(4)).metrics
    assert alone["top1"] < 1
    assert alone["num_queries_not_in_gallery"] == 2
    assert alone["eer"] == 0.5


def test_an_index_that_misses_the_query_returns_no_additional_neighbour():
    rows = CORNERS[:8]
    labels = np.arange(8) % 2

    def search(queries, k):  # of an index that does not hold row 0
        similarities, found = exact(rows[1:])(queries, k)
        return similarities, np.where(found >= 0, found + 1, -1)

    result = evaluated((rows, labels), (rows, labels), own=np.arange(8), search=search)
    assert all(len(mistake.neighbour_rows) <= 7 for mistake in result.mistakes)
    assert all(m.query_row not in m.neighbour_rows for m in result.mistakes)


def test_a_gallery_of_one_image_cannot_be_evaluated():
    one = CORNERS[:1], np.array([0])
    with pytest.raises(DataError, match="at least 2 images"):
        evaluated(one, one, own=np.arange(1))

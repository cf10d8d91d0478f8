"""Re-ranking and query expansion compared with the authors' algorithms in plain loops."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.evaluation.conftest import cut

from arcloop.evaluation.metrics.reranking import expand_queries, rerank


def clustered(seed, rows, dim=8):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((4, dim))
    rows_ND = centres[random.integers(0, 4, rows)] + 0.6 * random.standard_normal((rows, dim))
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


def re_ranking(rows, num_queries, k1, k2, lambda_value):
    """The published code of Zhong et al. for all queries and gallery rows, in float64."""
    rows = rows.astype(np.float64)
    original = 2 - 2 * rows @ rows.T
    original = (original / original.max(axis=0)).T
    initial_rank = np.argsort(original, axis=1, kind="stable")
    encodings = np.zeros_like(original)

    def neighbours(i, k):
        forward = initial_rank[i, : k + 1]
        return forward[[i in initial_rank[candidate, : k + 1] for candidate in forward]]

    for i in range(len(rows)):
        near = neighbours(i, k1)
        expanded = near
        for candidate in near:
            others = neighbours(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(others, near)) > 2 / 3 * len(others):
                expanded = np.append(expanded, others)
        expanded = np.unique(expanded)
        weight = np.exp(-original[i, expanded])
        encodings[i, expanded] = weight / weight.sum()
    if k2 != 1:
        encodings = np.stack([encodings[order[:k2]].mean(axis=0) for order in initial_rank])
    distances = np.zeros((num_queries, len(rows)))
    for i in range(num_queries):
        overlap = np.minimum(encodings[i], encodings).sum(axis=1)
        distances[i] = 1 - overlap / (2 - overlap)
    return ((1 - lambda_value) * distances + lambda_value * original[:num_queries])[:, num_queries:]


@effort(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    k1=st.integers(1, 25),
    k2=st.integers(1, 8),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    chunks=st.lists(st.integers(1, 20), min_size=1, max_size=3),
)
def test_reranking_the_whole_gallery_equals_the_paper(seed, rows, k1, k2, weight, chunks):
    gallery, queries = clustered(seed, rows), clustered(seed + 1, 3)
    order_QG = np.argsort(-(queries.astype(float) @ gallery.T.astype(float)), axis=1)
    found = rerank(
        queries, order_QG, lambda: cut(gallery, np.zeros(rows), chunks), k1=k1, k2=k2,
        original_weight=weight, memory_mb=1,
    )  # fmt: skip
    for query in range(3):
        ordered = gallery[order_QG[query]]  # ties of the distance keep this order
        expected = re_ranking(np.concatenate([queries[query, None], ordered]), 1, k1, k2, weight)[0]
        place = np.argsort(order_QG[query])[found[query]]  # in the first ranking
        assert sorted(found[query].tolist()) == list(range(rows))
        assert (np.diff(expected[place]) >= -1e-12).all()


def test_a_query_and_its_opposite_have_a_sum_of_zero():
    rows = np.array([[-1, 0], [0, 1]], np.float32)
    found = expand_queries(-rows, np.array([[0], [0]]), lambda: [(rows, np.arange(2))], 0.0, 1)
    assert found.tolist() == [[0, 0], pytest.approx([-(0.5**0.5), -(0.5**0.5)])]


def test_only_the_given_rows_are_compared():
    """Rows that are left out, and missing rows at the end, change nothing."""
    gallery, queries = clustered(5, 60), clustered(6, 4)
    some = np.argsort(-(queries @ gallery.T), axis=1)[:, :25]
    options = {"k1": 6, "k2": 3, "original_weight": 0.3, "memory_mb": 1}
    expected = rerank(queries, some, lambda: cut(gallery, np.zeros(60), [7]), **options)
    missing = np.concatenate([some, np.full((4, 9), -1)], axis=1)
    found = rerank(queries, missing, lambda: cut(gallery, np.zeros(60), [60]), **options)
    assert np.array_equal(found[:, :25], expected)
    assert (found[:, 25:] == -1).all()
    for query in range(4):
        alone = partial(iter, [(gallery[some[query]], np.zeros(25))])
        order = rerank(queries[query, None], np.arange(25)[None], alone, **options)
        assert np.array_equal(some[query][order[0]], expected[query])


def test_the_parts_of_a_large_batch_are_those_of_single_queries():
    """More queries than fit into the memory limit at once."""
    gallery, queries = clustered(7, 300, dim=64), clustered(8, 90, dim=64)
    rows = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :90]
    options = {"k1": 20, "k2": 6, "original_weight": 0.3, "memory_mb": 1}
    chunks = lambda: cut(gallery, np.zeros(300), [111])  # noqa: E731
    together = rerank(queries, rows, chunks, **options)
    for query in (0, 41, 89):
        one = slice(query, query + 1)
        assert np.array_equal(together[one], rerank(queries[one], rows[one], chunks, **options))


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 3.0]), st.integers(1, 12))
def test_expanded_queries_equal_their_definition(seed, alpha, k):
    gallery, queries = clustered(seed, 20), clustered(seed + 1, 5)
    rows = np.argsort(-(queries @ gallery.T), axis=1)[:, :k]
    rows[0, -1] = -1
    found = expand_queries(queries, rows, lambda: cut(gallery, np.zeros(20), [9]), alpha, 1)
    for query in range(5):
        total = queries[query].astype(float)
        for row in rows[query][rows[query] >= 0]:
            cosine = max(float(queries[query].astype(float) @ gallery[row].astype(float)), 0)
            total = total + cosine**alpha * gallery[row]
        assert found[query] == pytest.approx(total / np.linalg.norm(total), abs=1e-6)

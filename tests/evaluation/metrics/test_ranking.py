"""Retrieval metrics of arrays compared with loops and with the evaluator, in any batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from tests.evaluation.conftest import CORNERS, cut, exact, labelled_corners, settings

from arcloop.errors import DataError
from arcloop.evaluation import EvaluationSetup, evaluate_embeddings, evaluate_retrieval
from arcloop.retrieval import exact_search as blocks

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def by_definition(
    queries, gallery, own, recall_at=(1, 5, 10), precision_at=(5, 10), ndcg_at=(10,), *,
    full=False, groups=None,
):  # fmt: skip
    """Every metric from a sort of the whole gallery for one query after the other."""
    values = {}
    of_queries, of_rows = groups or (np.full(len(queries[1]), -1), np.full(len(gallery[1]), -2))

    def note(name, value):
        values.setdefault(name, []).append(value)

    for query, (embedding, label) in enumerate(zip(*queries, strict=True)):
        similarity = gallery[0].astype(float) @ embedding.astype(float)
        order = sorted(range(len(similarity)), key=lambda row: (-similarity[row], row))
        left = [row for row in order if row != own[query] and of_rows[row] != of_queries[query]]
        same = [bool(gallery[1][row] == label) for row in left]
        if r := sum(same):
            for k in recall_at:
                note(f"recall_at_{k}", any(same[:k]))
            for k in precision_at:
                note(f"precision_at_{k}", sum(same[:k]) / k)
            note("r_precision", sum(same[:r]) / r)
            note("map_at_r", sum(sum(same[: i + 1]) / (i + 1) for i in range(r) if same[i]) / r)
            note("mrr", 1 / (1 + same.index(True)))
            if full:
                last = max(np.flatnonzero(same))  # mINP as in the code of Ye et al.
                note("map", average_precision_score(same, -np.arange(len(same))))
                note("minp", np.cumsum(same)[last] / (last + 1.0))
            for k in ndcg_at:
                gain = sum(1 / math.log2(i + 2) for i, hit in enumerate(same[:k]) if hit)
                best = sum(1 / math.log2(i + 2) for i in range(min(r, k)))
                note(f"ndcg_at_{k}", gain / best)
    return {name: np.mean(found) for name, found in values.items()} | {
        "num_queries": len(queries[1]),
        "num_queries_not_in_gallery": len(queries[1]) - len(values.get("mrr", [])),
        "num_gallery": len(gallery[1]),
    }


@effort(max_examples=60)
@given(
    queries=labelled_corners(4, st.integers(1, 12)),
    gallery=labelled_corners(3, st.integers(1, 25)),
    names=st.permutations([-7, 0, 3, 2**40]),
    batches=sizes,
    chunks=sizes,
    k=st.integers(1, 40),
)
def test_metrics_equal_their_definitions(queries, gallery, names, batches, chunks, k):
    """Ties, classes that the gallery has not, any labels, streams, and a k beyond the gallery."""
    names = np.array(names)
    queries, gallery = (queries[0], names[queries[1]]), (gallery[0], names[gallery[1]])
    found = evaluate_retrieval(
        cut(*queries, batches),
        lambda: cut(*gallery, chunks),
        recall_at=(1, k), precision_at=(k,), ndcg_at=(k,), memory_mb=1,
    )  # fmt: skip
    no_own = np.full(len(queries[1]), -1)
    expected = by_definition(queries, gallery, no_own, (1, k), (k,), (k,))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@effort(max_examples=40)
@given(gallery=labelled_corners(3, st.integers(2, 25)), share=st.floats(0, 1), chunks=sizes)
def test_a_query_is_not_its_own_neighbour(gallery, share, chunks):
    """Nor where other rows are equal to it, nor where it is the only one of its class."""
    first = slice(max(1, int(share * len(gallery[1]))))
    queries = gallery[0][first], gallery[1][first]
    found = evaluate_retrieval(
        queries, lambda: cut(*gallery, chunks), leave_one_out=True, memory_mb=1
    )
    expected = by_definition(queries, gallery, range(len(queries[1])))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@effort(max_examples=60)
@given(
    gallery=labelled_corners(3, st.integers(2, 25)),
    groups=st.lists(st.integers(-1, 4), min_size=50, max_size=50),
    queries=labelled_corners(4, st.integers(1, 12)),
    leave_one_out=st.booleans(),
    batches=sizes,
    chunks=sizes,
)
def test_the_whole_ranking_without_rows_of_the_group(
    gallery, groups, queries, leave_one_out, batches, chunks
):
    """Groups of several classes, queries without a group, and queries that have no row left."""
    groups_G = np.array(groups[: len(gallery[1])])
    queries = gallery if leave_one_out else queries
    groups_Q = groups_G if leave_one_out else np.array(groups[-len(queries[1]) :])
    own = np.arange(len(queries[1])) if leave_one_out else np.full(len(queries[1]), -1)
    found = evaluate_retrieval(
        cut(*queries, batches), lambda: cut(*gallery, chunks), leave_one_out=leave_one_out,
        memory_mb=1, full_ranking=True, groups=(groups_Q, groups_G),
    )  # fmt: skip
    of_rows = np.where(groups_G < 0, -2, groups_G)
    expected = by_definition(queries, gallery, own, full=True, groups=(groups_Q, of_rows))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_a_group_of_person_and_camera_gives_the_protocol_of_market_1501():
    """Rows of the same person and camera are junk; other persons of that camera are not."""
    (queries, persons_Q), (rows, persons_G) = drawn(60, 6, seed=1), drawn(300, 6)
    cameras_Q, cameras_G = (np.random.default_rng(n).integers(0, 3, n) for n in (60, 300))
    found = evaluate_retrieval(
        (queries, persons_Q), (rows, persons_G), full_ranking=True,
        groups=(persons_Q * 3 + cameras_Q, persons_G * 3 + cameras_G),
    )  # fmt: skip
    precisions, penalties, first = [], [], []
    for query in range(60):  # eval_func of the authors' reid-strong-baseline and AGW
        order = np.argsort(-(rows.astype(float) @ queries[query].astype(float)), kind="stable")
        remove = (persons_G[order] == persons_Q[query]) & (cameras_G[order] == cameras_Q[query])
        matches = (persons_G[order] == persons_Q[query])[~remove].astype(np.int32)
        cmc = matches.cumsum()
        penalties.append(cmc[np.where(matches == 1)[0].max()] / (matches.nonzero()[0].max() + 1.0))
        hits = [x / (i + 1.0) for i, x in enumerate(matches.cumsum())] * matches
        precisions.append(hits.sum() / matches.sum())
        first.append(matches[0])
    assert found["map"] == pytest.approx(np.mean(precisions), abs=1e-12)
    assert found["minp"] == pytest.approx(np.mean(penalties), abs=1e-12)
    assert found["recall_at_1"] == np.mean(first)


def drawn(rows, classes, *, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=rows)
    centres = np.random.default_rng(9).standard_normal((classes, 16))
    embeddings = centres[labels] + 1.5 * random.standard_normal((rows, 16))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings.astype(np.float32), labels


def evaluated(queries, gallery, own, classes):
    setup = EvaluationSetup(
        gallery=lambda: cut(*gallery, [250]),
        gallery_labels=gallery[1],
        search=exact(gallery[0]),
        classes=[str(label) for label in range(classes)],
        settings=settings(batch_size=64),
        threshold=0.5,
        num_queries=len(queries[1]),
        own_rows=own,
    )
    return evaluate_embeddings(cut(*queries, [100]), setup).metrics


@effort(max_examples=20)
@given(labelled_corners(3, st.integers(1, 12)), labelled_corners(3, st.integers(2, 25)))
def test_the_evaluator_agrees(queries, gallery):
    for of, own in ((queries, None), (gallery, np.arange(len(gallery[1])))):
        found = evaluate_retrieval(of, gallery, leave_one_out=own is not None)
        expected = evaluated(of, gallery, own, 3)
        assert found.keys() <= expected.keys()
        for name, value in found.items():
            assert value == pytest.approx(expected[name], abs=1e-14), name


@pytest.mark.parametrize("classes", [3, 400])
def test_the_evaluator_agrees_up_to_rounding(classes):
    """Its blocks differ, so almost equal rows may change their order."""
    queries, gallery = drawn(300, classes, seed=1), drawn(900, classes)
    expected = evaluated(queries, gallery, None, classes)
    for name, value in evaluate_retrieval(queries, gallery).items():
        assert value == pytest.approx(expected[name], abs=1e-6), name


def test_the_first_relevant_row_is_found_at_any_rank():
    """One relevant row after 3000 nearer ones, with equal rows before and after it."""
    random = np.random.default_rng(0)
    rows = np.array([[1, 0]] * 3000 + [[0.6, 0.8]] * 10, np.float32)
    labels = np.repeat([0, 1], [3000, 10])
    labels[3004] = 2
    order = random.permutation(len(rows))
    found = evaluate_retrieval((rows[:1], np.array([2])), (rows[order], labels[order]))
    rank = 3001 + (np.flatnonzero(order >= 3000) < np.flatnonzero(order == 3004)).sum()
    assert found["mrr"] == pytest.approx(1 / rank, abs=1e-12)
    assert found["recall_at_10"] == found["map_at_r"] == 0


@pytest.mark.parametrize("classes", [5, 800])
def test_metrics_do_not_depend_on_the_number_of_threads(classes, monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_QUERIES", 32)  # many blocks, though few queries
    queries, gallery = drawn(300, classes, seed=1), drawn(3000, classes)
    threads = torch.get_num_threads()
    found = []
    try:
        for cores in (1, 2, 3, 8):
            torch.set_num_threads(cores)
            found.append(evaluate_retrieval(queries, gallery, full_ranking=True))
    finally:
        torch.set_num_threads(threads)
    assert all(one == found[0] for one in found)


def test_arrays_streams_and_tensors_have_equal_metrics():
    queries, gallery = drawn(300, 40, seed=1), drawn(900, 40)
    of_arrays = evaluate_retrieval(queries, gallery)
    assert of_arrays == evaluate_retrieval(cut(*queries, [70]), lambda: cut(*gallery, [130]))
    assert of_arrays == evaluate_retrieval(
        tuple(map(torch.from_numpy, queries)), tuple(map(torch.from_numpy, gallery))
    )
    assert of_arrays == evaluate_retrieval([queries], lambda: [gallery])


NONE = np.empty((0, 4), np.float32), np.empty(0, np.int64)
ALL = CORNERS, np.arange(16)


@pytest.mark.parametrize(
    ("queries", "gallery", "options", "message"),
    [
        (NONE, ALL, {}, "no queries"),
        (ALL, NONE, {}, "gallery is empty"),
        ((2 * CORNERS, ALL[1]), ALL, {}, r"norm 2(.|\n)*queries, row 0"),
        (ALL, (np.r_[CORNERS, 3 * CORNERS], np.arange(32)), {}, r"norm 3(.|\n)*gallery, row 16"),
        (ALL, (np.full((2, 4), np.nan), ALL[1][:2]), {}, "norm nan"),
        ((CORNERS, ALL[1][:3]), ALL, {}, "shape .* but labels"),
        ((CORNERS, np.ones(16)), ALL, {}, "labels are float64"),
        (ALL, (CORNERS[:8], ALL[1][:8]), {"leave_one_out": True}, "query 15 is not in"),
        ((CORNERS[:1], ALL[1][:1]), (CORNERS[:1], ALL[1][:1]), {"leave_one_out": True}, "one row"),
        (ALL, ALL, {"groups": (ALL[1][:9], ALL[1])}, "9 groups for 16 rows(.|\n)*queries"),
        (ALL, ALL, {"groups": (ALL[1], ALL[1][:9])}, "9 groups for 16 rows(.|\n)*gallery"),
        ((ALL[0][:9], ALL[1][:9]), ALL, {"groups": (ALL[1], ALL[1])}, "16 groups for 9 rows"),
        (ALL, ALL, {"groups": (ALL[1], np.arange(17))}, "17 groups for 16 rows"),
    ],
)  # fmt: skip
def test_invalid_input_is_reported(queries, gallery, options, message):
    with pytest.raises(DataError, match=message):
        evaluate_retrieval(queries, gallery, **options)


@pytest.mark.parametrize("name", ["recall_at", "precision_at", "ndcg_at"])
def test_k_must_be_at_least_one(name):
    with pytest.raises(ValueError, match=name):
        evaluate_retrieval(ALL, ALL, **{name: (0,)})

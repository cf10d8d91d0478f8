"""The whole evaluation compared with loops over all queries and gallery rows."""

import math
import pickle

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.evaluation.conftest import CORNERS, cut, exact, labelled_corners, settings

from arcloop.distributed.process_group import ProcessGroup
from arcloop.errors import DataError
from arcloop.evaluation import (
    EvaluationSetup,
    compute_evaluation,
    evaluate_embeddings,
    update_evaluation,
)
from arcloop.runtime.searcher import search as search_faiss

CLASSES = ["a", "b", "c"]
ELSEWHERE = {  # tested in the tests of their modules
    "eer", *(f"tar_at_far_1e-{digits}" for digits in range(2, 7)), "nmi", "ami", "pair_accuracy",
    "pair_accuracy_std", "pair_accuracy_balanced", "pair_accuracy_hard",
}  # fmt: skip
sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def setup(queries, gallery, *, threshold=0.5, classes=CLASSES, search=None, own=None, **changed):
    chunks, groups = changed.pop("chunks", [5]), changed.pop("groups", (None, None))
    return EvaluationSetup(
        gallery=lambda: cut(*gallery, chunks),
        gallery_labels=gallery[1],
        search=search or exact(gallery[0]),
        classes=classes,
        settings=settings(**changed),
        threshold=threshold,
        num_queries=len(queries[1]),
        own_rows=own,
        groups=groups[0],
        gallery_groups=groups[1],
    )


def evaluated(queries, gallery, *, batches=(4,), **options):
    return evaluate_embeddings(cut(*queries, batches), setup(queries, gallery, **options))


def oracle(queries, gallery, threshold, own=None, left=None):
    """All metrics except verification and clustering, by definition.

    `left` contains the gallery rows that each query is compared with.
    """
    rows, labels = gallery
    top1, unknown, known = [], [], []
    by_rank = {"map_at_r": [], "r_precision": [], "mrr": [], "ndcg_at_10": []}
    recalls, precisions = {1: [], 5: [], 10: []}, {5: [], 10: []}
    for query, (embedding, label) in enumerate(zip(*queries, strict=True)):
        similarities = [float(np.dot(embedding.astype(float), row.astype(float))) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: (-similarities[row], row))
        order = [row for row in order if own is None or row != own[query]]
        order = [row for row in order if left is None or row in left[query]]
        same = [bool(labels[row] == label) for row in order]
        unknown.append(similarities[order[0]] < threshold)
        r = sum(same)
        known.append((r > 0, same[0], similarities[order[0]],
                      [similarities[row] for row in order if labels[row] != label]))  # fmt: skip
        if r:
            top1.append((label, same[0]))
            for k, hits in recalls.items():
                hits.append(any(same[:k]))
            for k, shares in precisions.items():
                shares.append(sum(same[:k]) / k)
            by_rank["r_precision"].append(sum(same[:r]) / r)
            by_rank["map_at_r"].append(
                sum(sum(same[:i]) / i for i in range(1, r + 1) if same[i - 1]) / r
            )
            by_rank["mrr"].append(1 / (same.index(True) + 1))
            ideal = sum(1 / math.log2(i + 1) for i in range(1, min(r, 10) + 1))
            gain = sum(1 / math.log2(i + 1) for i in range(1, 11) if same[i - 1 : i] == [True])
            by_rank["ndcg_at_10"].append(gain / ideal)
    by_class = [
        np.mean([hit for label, hit in top1 if label == c]) for c in sorted({c for c, _ in top1})
    ]
    answers = (
        {
            "top1": np.mean([hit for _, hit in top1]),
            **{f"recall_at_{k}": np.mean(hits) for k, hits in recalls.items()},
            **{f"precision_at_{k}": np.mean(shares) for k, shares in precisions.items()},
            **{name: np.mean(values) for name, values in by_rank.items()},
            "mean_class_accuracy": np.mean(by_class),
            "min_class_accuracy": min(by_class),
        }
        if top1
        else {}
    )
    return {
        **answers,
        **identification(known, threshold),
        "unknown_rate": np.mean(unknown),
        "index_recall_at_1": 1.0,
        "index_recall_at_10": 1.0,
        "num_queries": len(queries[1]),
        "num_queries_not_in_gallery": len(queries[1]) - len(top1),
        "threshold": threshold,
        "num_gallery": len(rows),
        "num_classes": len(set(labels.tolist())),
    }


def identification(queries, deployed):
    """Open-set rates of (class is in the gallery, right, best similarity, those to other classes).

    A rate needs 30 expected errors, FPIR, FNIR and AUROC 30 queries.
    """
    absent = [best for known, _, best, _ in queries if not known]
    unknown = absent or [max(others) for *_, others in queries if others]
    known = [(right, best) for is_known, right, best, _ in queries if is_known]
    rates = {}
    for name, far in (("1e-1", 0.1), ("1e-2", 0.01)):
        if known and len(unknown) * far >= 30:
            rates[f"dir_at_far_{name}"] = max(
                np.mean([right and best >= threshold for right, best in known])
                for threshold in [best for _, best in known] + [2]
                if np.mean([score >= threshold for score in unknown]) <= far
            )
    if len(absent) >= 30:
        rates["fpir"] = np.mean([best >= deployed for best in absent])
    if len(known) >= 30:
        rates["fnir"] = np.mean([not (right and best >= deployed) for right, best in known])
    if min(len(absent), len(known)) >= 30:
        rates["unknown_auroc"] = np.mean(
            [(best > other) + (best == other) / 2 for _, best in known for other in absent]
        )
    return rates


@pytest.mark.parametrize("num_absent", [0, 320])
def test_open_set_metrics_equal_their_definitions(num_absent):
    """Queries of a class outside the gallery are unknown; without any, DIR simulates them."""
    random = np.random.default_rng(0)
    labels = np.where(np.arange(400) < num_absent, 3, random.integers(3, size=400))
    corners = random.integers(0, 12, 400)
    gallery = (CORNERS[random.integers(0, 16, 30)], random.integers(3, size=30))
    classes = [*CLASSES, "absent"]
    result = evaluated((CORNERS[corners], labels), gallery, classes=classes, batch_size=64)
    expected = oracle((CORNERS[corners], labels), gallery, 0.5)
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12), name
    measured = {"dir_at_far_1e-1", "fnir", *(["fpir", "unknown_auroc"] if num_absent else [])}
    assert measured <= expected.keys()
    assert {"fpir", "unknown_auroc", "dir_at_far_1e-2"} - measured <= result.not_measurable.keys()
    assert not result.metrics.keys() & result.not_measurable.keys()
    assert result.metrics["num_queries_not_in_gallery"] == num_absent


@effort(max_examples=40)
@given(
    queries=labelled_corners(3, st.integers(1, 12)),
    gallery=labelled_corners(3, st.integers(1, 25)),
    batches=sizes,
    chunks=sizes,
)
def test_metrics_equal_their_definitions(queries, gallery, batches, chunks):
    result = evaluated(queries, gallery, batches=batches, chunks=chunks)
    expected = oracle(queries, gallery, 0.5)
    assert result.metrics.keys() - ELSEWHERE == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12), name
    assert result.pairs.same.sum() + result.pairs.different.sum() == (
        len(queries[1]) * len(gallery[1])
    )


def test_the_first_relevant_row_is_found_at_any_rank():
    """Each class has one row, so only two ranks are kept, but the row may have the last rank."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((40, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries, gallery = (rows[20:], np.arange(20)), (rows[:20], np.arange(20))
    classes = [str(label) for label in range(20)]
    metrics = evaluated(queries, gallery, classes=classes, memory_mb=1, chunks=[3]).metrics
    assert metrics["mrr"] == pytest.approx(oracle(queries, gallery, 0.5)["mrr"], abs=1e-12)
    assert metrics["recall_at_10"] < 1


@effort(max_examples=20)
@given(
    queries=labelled_corners(3, st.integers(1, 30)),
    gallery=labelled_corners(3, st.integers(1, 25)),
    world=st.integers(2, 4),
)
def test_merged_states_equal_a_single_process(queries, gallery, world):
    def state_of(rank):
        part = ProcessGroup(rank, world).shard(len(queries[1]), settings().batch_size)
        own = slice(part.start, part.stop)
        batches = cut(queries[0][own], queries[1][own], [3])
        return pickle.loads(pickle.dumps(update_evaluation(batches, parameters, part)))

    parameters = setup(queries, gallery, num_mistakes=3)
    merged = compute_evaluation([state_of(rank) for rank in range(world)], parameters)
    whole = evaluated(queries, gallery, num_mistakes=3)
    assert repr(merged.metrics) == repr(whole.metrics)
    assert merged.mistakes == whole.mistakes
    assert np.array_equal(merged.confusion.counts, whole.confusion.counts)
    assert np.array_equal(merged.pairs.same, whole.pairs.same)
    assert np.array_equal(merged.queries.embeddings, whole.queries.embeddings)
    assert np.array_equal(merged.queries_right, whole.queries_right)


@effort(max_examples=40)
@given(
    queries=labelled_corners(3, st.integers(1, 12)),
    gallery=labelled_corners(3, st.integers(1, 25)),
    batches=sizes,
    chunks=sizes,
)
def test_results_do_not_depend_on_batches_and_chunks(queries, gallery, batches, chunks):
    one = evaluated(queries, gallery, batches=batches, chunks=chunks)
    other = evaluated(queries, gallery, batches=[100], chunks=[100], memory_mb=64, batch_size=7)
    assert one.metrics == pytest.approx(other.metrics, abs=1e-12)
    assert one.mistakes == other.mistakes
    assert np.array_equal(one.confusion.counts, other.confusion.counts)
    assert np.array_equal(one.pairs.same, other.pairs.same)
    assert one.queries.rows.tolist() == other.queries.rows.tolist()
    assert one.gallery.rows.tolist() == other.gallery.rows.tolist()


@effort(max_examples=40)
@given(
    queries=labelled_corners(3, st.integers(1, 12)), gallery=labelled_corners(3, st.integers(1, 25))
)
def test_mistakes_are_the_most_similar_wrong_answers(queries, gallery):
    similarities, rows = exact(gallery[0])(queries[0], min(10, len(gallery[1])))
    wrong = [
        (-similarities[query, 0], query)
        for query in range(len(queries[1]))
        if gallery[1][rows[query, 0]] != queries[1][query]
    ]
    mistakes = evaluated(queries, gallery, num_mistakes=3).mistakes
    assert [mistake.query_row for mistake in mistakes] == [row for _, row in sorted(wrong)[:3]]
    for mistake in mistakes:
        assert mistake.label == queries[1][mistake.query_row]
        assert list(mistake.neighbour_rows) == rows[mistake.query_row].tolist()
        assert list(mistake.neighbour_labels) == gallery[1][rows[mistake.query_row]].tolist()
        assert mistake.predicted == mistake.neighbour_labels[0] != mistake.label
        assert mistake.similarity == mistake.neighbour_similarities[0]


def test_every_metric_is_a_plain_finite_number():
    labels = np.arange(16) % 3
    metrics = evaluated((CORNERS, labels), (CORNERS, labels)).metrics
    assert all(type(value) in (int, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["top1"] == 1


def test_one_class_only_has_no_verification():
    rows = (CORNERS, np.zeros(16, np.int64))
    result = evaluated(rows, rows, classes=["a"])
    assert not {"eer", "tar_at_far_1e-2"} & result.metrics.keys()
    assert {"eer", "tar_at_far_1e-2"} <= result.not_measurable.keys()
    assert result.metrics["map_at_r"] == result.metrics["min_class_accuracy"] == 1
    assert result.mistakes == []
    assert result.confusion.counts.tolist() == [[16]]


def test_a_class_absent_from_the_gallery_does_not_count_as_wrong():
    queries = (CORNERS[:4], np.array([0, 0, 2, 2]))
    gallery = (CORNERS[:2], np.array([0, 0]))
    metrics = evaluated(queries, gallery).metrics
    of_known = {"top1", "recall_at_5", "map_at_r", "mean_class_accuracy", "min_class_accuracy"}
    assert {metrics[name] for name in of_known} == {1}
    assert metrics["num_queries_not_in_gallery"] == 2
    assert not of_known & evaluated((CORNERS[:1], np.array([2])), gallery).metrics.keys()


def test_a_query_without_neighbours_is_wrong_and_unknown():
    labels = np.zeros(16, np.int64)

    def search(queries, k):
        similarities, rows = exact(CORNERS)(queries, k)
        rows[queries[:, 0] < 0] = -1
        similarities[queries[:, 0] < 0] = np.finfo(np.float32).min
        return similarities, rows

    result = evaluated((CORNERS, labels), (CORNERS, labels), search=search, threshold=-1)
    assert result.metrics["top1"] == result.metrics["unknown_rate"] == 0.5
    assert result.metrics["index_recall_at_10"] == 0.5
    assert result.metrics["map_at_r"] == 1
    assert result.mistakes == []
    assert result.confusion.counts.tolist() == [[8]]


def test_max_pairs_limits_pairs_only():
    labels = np.arange(16) % 3
    whole = evaluated((CORNERS, labels), (CORNERS, labels))
    sampled = evaluated((CORNERS, labels), (CORNERS, labels), max_pairs=5 * 16)
    assert sampled.pairs.same.sum() + sampled.pairs.different.sum() == 5 * 16
    assert np.all(sampled.pairs.same <= whole.pairs.same)
    assert sampled.metrics["map_at_r"] == whole.metrics["map_at_r"]
    least = evaluated((CORNERS, labels), (CORNERS, labels), max_pairs=1).pairs
    assert least.same.sum() + least.different.sum() == 16


def test_num_projected_limits_the_sample():
    labels = np.arange(16) % 3
    result = evaluated((CORNERS, labels), (CORNERS, (labels + 1) % 3), num_projected=12)
    assert len(result.gallery.rows) + len(result.queries.rows) == 12
    assert len(result.queries_right) == len(result.queries.rows)
    assert not result.queries_right.any()
    none = evaluated((CORNERS, labels), (CORNERS, labels), num_projected=0)
    assert len(none.gallery.rows) == len(none.queries.rows) == 0


def test_two_evaluations_of_a_faiss_index_are_equal():
    random = np.random.default_rng(0)
    rows = random.standard_normal((700, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = random.integers(3, size=700)
    index = faiss.IndexFlatIP(16)
    index.add(rows[300:])
    twice = [
        evaluated(
            (rows[:300], labels[:300]),
            (rows[300:], labels[300:]),
            search=lambda queries, k: search_faiss(index, queries, k),
            batches=[97],
            chunks=[61],
        )
        for _ in range(2)
    ]
    expected = oracle((rows[:300], labels[:300]), (rows[300:], labels[300:]), 0.5)
    for name, value in expected.items():
        assert twice[0].metrics[name] == pytest.approx(value, abs=1e-9), name
    assert repr(twice[0].metrics) == repr(twice[1].metrics)


def test_missed_neighbours_reduce_index_recall():
    random = np.random.default_rng(0)
    rows = random.standard_normal((500, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = random.integers(3, size=500)
    half = rows.copy()
    half[250:] = -half[250:]  # an index without half of the gallery

    def search(queries, k):
        return exact(half)(queries, k)

    result = evaluated((rows[:50], labels[:50]), (rows, labels), search=search)
    served, truth = search(rows[:50], 10)[1], exact(rows)(rows[:50], 10)[1]
    shared = [len({*a} & {*b}) / 10 for a, b in zip(served.tolist(), truth.tolist(), strict=True)]
    assert result.metrics["index_recall_at_10"] == pytest.approx(np.mean(shared), abs=1e-12)
    assert result.metrics["index_recall_at_10"] < 0.9


def test_no_queries_is_a_data_error():
    rows = (CORNERS, np.zeros(16, np.int64))
    with pytest.raises(DataError, match="no queries"):
        evaluated((CORNERS[:0], np.zeros(0, np.int64)), rows)

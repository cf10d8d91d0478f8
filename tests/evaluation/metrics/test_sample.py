"""Samples; pairs, folds and thresholds compared with loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.evaluation.conftest import cut

from arcloop.evaluation.metrics.sample import (
    Sample,
    best_threshold,
    deal_images,
    draw_negatives,
    fold_accuracies,
    pair_metrics,
    sampled_rows,
)

scored = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30)


def unit_rows(count, dim=8, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(st.lists(st.integers(0, 4), max_size=80), st.integers(0, 9))
def test_an_image_is_in_one_fold_and_in_one_pair_of_its_class(labels, seed):
    labels = np.array(labels, np.int64)
    folds = deal_images(labels, np.random.default_rng(seed))
    assert len(folds) == 10
    assert sorted(row for rows, _ in folds for row in rows.tolist()) == list(range(len(labels)))
    for rows, same in folds:
        assert np.array_equal(labels[same[:, 0]], labels[same[:, 1]])
        assert set(same.ravel().tolist()) <= set(rows.tolist())
    paired = np.concatenate([same.ravel() for _, same in folds])
    assert len(set(paired.tolist())) == len(paired)
    assert len(paired) == 2 * (np.bincount(labels, minlength=1) // 2).sum()


def test_a_fold_has_at_most_1000_images():
    for rows, same in deal_images(np.arange(30_000) % 7, np.random.default_rng(0)):
        assert 990 < len(rows) <= 1000
        assert len(same) >= 300  # as many as on LFW


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 40), st.integers(0, 9))
def test_negatives_are_pairs_of_different_classes(labels, count, seed):
    labels, rows = np.array(labels, np.int64), unit_rows(len(labels))
    possible = [
        (i, j) for i, j in itertools.combinations(range(len(labels)), 2) if labels[i] != labels[j]
    ]
    drawn = draw_negatives(rows, labels, count, np.random.default_rng(seed))
    assert list(drawn) == ["", "_balanced", "_hard"]
    for kind, pairs in drawn.items():
        found = [tuple(pair) for pair in pairs.tolist()]
        assert len(found) == min(count, len(possible))
        assert set(found) <= set(possible)
        assert kind == "_balanced" or len(set(found)) == len(found)


def test_all_pairs_or_all_pairs_of_classes_are_equally_likely():
    """Chi-squared test of the draws, for classes of 4, 2, 1 and 1 images."""
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    random, rows = np.random.default_rng(0), unit_rows(8)
    counts = {"": np.zeros((8, 8)), "_balanced": np.zeros((4, 4))}
    for _ in range(4000):
        drawn = draw_negatives(rows, labels, 3, random)
        np.add.at(counts[""], tuple(drawn[""].T), 1)
        np.add.at(counts["_balanced"], tuple(labels[drawn["_balanced"]].T), 1)
    for found, possible in (
        (counts[""], np.triu(labels[:, None] != labels)),
        (counts["_balanced"], np.triu(np.ones((4, 4), bool), 1)),
    ):
        assert found[~possible].sum() == 0
        assert found.sum() == 12_000
        assert chisquare(found[possible]).pvalue > 1e-3


def test_hard_negatives_are_among_the_most_similar_hundredth():
    labels, rows = np.arange(200) % 10, unit_rows(200)
    (first, second), random = np.triu_indices(200, 1), np.random.default_rng(0)
    similar = np.sort(np.einsum("pd,pd->p", rows[first], rows[second])[
        labels[first] != labels[second]
    ])  # fmt: skip
    for count, hardest in ((20, 180), (500, 500)):  # 1% of the 18,000 pairs, or as many as drawn
        at = draw_negatives(rows, labels, count, random)["_hard"]
        drawn = np.sort(np.einsum("pd,pd->p", rows[at[:, 0]], rows[at[:, 1]]))
        assert drawn[0] >= similar[-hardest] - 1e-6
        assert len(drawn) == count
    assert drawn == pytest.approx(similar[-500:], abs=1e-6)


@given(scored)
def test_the_best_threshold_equals_trying_all(pairs):
    similarities = np.array([value / 4 for value, _ in pairs])
    same = np.array([kind for _, kind in pairs])
    values = sorted(set(similarities.tolist()))
    edges = [values[0], *[(a + b) / 2 for a, b in itertools.pairwise(values)]]
    tried = {edge: np.mean((similarities >= edge) == same) for edge in edges}
    assert best_threshold(similarities, same) == max(edges, key=lambda edge: tried[edge])


@given(scored, st.integers(2, 4))
def test_each_fold_uses_the_threshold_of_the_others(pairs, folds):
    pairs = [*pairs, *[(0, True), (1, False)] * folds]
    similarities = np.array([value / 4 for value, _ in pairs])
    same = np.array([kind for _, kind in pairs])
    fold = np.arange(len(pairs)) // 2 % folds
    expected = []
    for test in range(folds):
        threshold = best_threshold(similarities[fold != test], same[fold != test])
        inside = np.flatnonzero(fold == test)
        expected.append(np.mean([(similarities[i] >= threshold) == same[i] for i in inside]))
    assert fold_accuracies(similarities, same, fold).tolist() == pytest.approx(expected)


def sample(noise, rows=200):
    labels = np.arange(rows) % 5
    embeddings = np.eye(16, dtype=np.float32)[labels]
    embeddings += noise * np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels


def test_separated_classes_are_distinguished_and_noise_is_not():
    perfect = pair_metrics(*sample(0.05))
    assert perfect == {
        "pair_accuracy": 1, "pair_accuracy_std": 0, "pair_accuracy_balanced": 1,
        "pair_accuracy_hard": 1,
    }  # fmt: skip
    noise = pair_metrics(*sample(20))
    assert 0.3 < noise["pair_accuracy"] < 0.7
    assert noise["pair_accuracy_std"] > 0


def test_pair_accuracy_sees_every_pair_of_classes():
    """Two of ten classes are one point: 1/45 of uniform negatives are wrong, 1/2 of that overall.

    Negatives at a fixed distance in the order of classes miss this pair or see it too often.
    """
    labels = np.arange(6000) % 10
    rows = np.eye(16, dtype=np.float32)[np.where(labels == 1, 0, labels)]
    metrics = pair_metrics(rows, labels)
    assert metrics["pair_accuracy"] == pytest.approx(1 - 0.5 / 45, abs=0.004)
    assert metrics["pair_accuracy_balanced"] == pytest.approx(1 - 0.5 / 45, abs=0.004)
    assert metrics["pair_accuracy_hard"] < 0.91  # all hard negatives are pairs of these classes


def test_balanced_negatives_see_rare_classes():
    """The rare classes 1 to 4 are one point: 6 of the 15 pairs of classes, but few pairs."""
    labels = np.repeat([0, 1, 2, 3, 4, 5], [4000, 100, 100, 100, 100, 4000])
    rows = np.eye(16, dtype=np.float32)[np.where((labels > 0) & (labels < 5), 1, labels)]
    metrics = pair_metrics(rows, labels)
    assert metrics["pair_accuracy"] > 0.99
    assert metrics["pair_accuracy_balanced"] == pytest.approx(1 - 0.5 * 6 / 15, abs=0.03)


def test_too_few_images_for_ten_folds():
    for rows in (0, 15):
        reasons = pair_metrics(*sample(0.05, rows=rows))
        assert len(reasons) == 4
        assert len(set(reasons.values())) == 1
        assert reasons["pair_accuracy"] == (
            f"not measurable with {rows} images; each of the 10 folds needs a pair of the same "
            "class and one of different classes"
        )


def test_rows_are_distinct_ascending_and_limited():
    rows = sampled_rows(1000, 50)
    assert len(rows) == 50
    assert np.all(np.diff(rows) > 0)
    assert sampled_rows(30, 50).tolist() == list(range(30))
    assert len(sampled_rows(30, 0)) == 0


def test_a_smaller_sample_is_part_of_a_larger_one():
    assert set(sampled_rows(1000, 50)) < set(sampled_rows(1000, 300))


def test_every_part_of_the_split_is_equally_likely():
    tenths = np.bincount(sampled_rows(10_000, 2000) // 1000, minlength=10)
    assert np.all(abs(tenths - 200) < 5 * np.sqrt(200 * 0.9))


@pytest.mark.parametrize("chunk", [1, 7, 333, 1000])
@pytest.mark.parametrize("capacity", [0, 50, 1000, 1001])
def test_embeddings_and_labels_belong_to_the_rows(chunk, capacity):
    rows = np.arange(1000)
    embeddings = np.stack([rows, -rows], axis=1).astype(np.float32)
    sample = Sample.draw(lambda: cut(embeddings, rows % 7, [chunk]), rows % 7, capacity)
    assert sample.rows.tolist() == sampled_rows(1000, capacity).tolist()
    assert np.array_equal(sample.embeddings, embeddings[sample.rows])
    assert np.array_equal(sample.labels, sample.rows % 7)
    part = sample.subset(sample.rows[::3])
    assert np.array_equal(part.embeddings, embeddings[part.rows])
    assert np.array_equal(part.labels, part.rows % 7)

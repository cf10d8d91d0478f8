"""Samples; pairs, folds and thresholds compared with loops; k-means and clustering metrics."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.conftest import cut

from arcloop.evaluation.metrics.sample import (
    Sample,
    best_threshold,
    clustering_metrics,
    draw_pairs,
    fold_accuracies,
    kmeans,
    pair_metrics,
    sampled_rows,
)

scored = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30)


@given(st.lists(st.integers(0, 4), max_size=80))
def test_pairs_have_the_classes_they_claim(labels):
    labels = np.array(labels, np.int64)
    first, second, same = draw_pairs(labels)
    assert np.array_equal(labels[first] == labels[second], same)
    assert same.sum() * 2 == len(same)
    alike = np.concatenate([first[same], second[same]])
    assert len(set(alike.tolist())) == len(alike)
    others = np.concatenate([first[~same], second[~same]])
    assert np.bincount(others, minlength=1).max() <= 2
    again = draw_pairs(labels)
    assert all(np.array_equal(a, b) for a, b in zip(again, (first, second, same), strict=True))


def test_the_number_of_pairs_is_limited_to_that_of_lfw():
    """9 images of each of 10 classes make 4 pairs within each, and as many across."""
    assert len(draw_pairs(np.arange(90) % 10)[2]) == 2 * 40
    assert len(draw_pairs(np.arange(20_000) % 10)[2]) == 6000


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
    expected = []
    for fold in range(folds):
        inside = [i for i in range(len(pairs)) if i // 2 % folds == fold]
        outside = [i for i in range(len(pairs)) if i // 2 % folds != fold]
        threshold = best_threshold(similarities[outside], same[outside])
        expected.append(np.mean([(similarities[i] >= threshold) == same[i] for i in inside]))
    assert fold_accuracies(similarities, same, folds).tolist() == pytest.approx(expected)


def sample(noise, rows=200):
    labels = np.arange(rows) % 5
    embeddings = np.eye(16, dtype=np.float32)[labels]
    embeddings += noise * np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels


def test_separated_classes_are_distinguished_and_noise_is_not():
    assert pair_metrics(*sample(0.05)) == {"pair_accuracy": 1, "pair_accuracy_std": 0}
    noise = pair_metrics(*sample(20))
    assert 0.3 < noise["pair_accuracy"] < 0.7
    assert noise["pair_accuracy_std"] > 0


def test_too_few_images_for_ten_folds():
    assert pair_metrics(*sample(0.05, rows=15)) == {}
    assert pair_metrics(*sample(0.05, rows=0)) == {}


def points(noise, rows=120):
    random = np.random.default_rng(0)
    labels = np.arange(rows) % 4
    embeddings = np.eye(8, dtype=np.float32)[labels]
    embeddings += noise * random.standard_normal(embeddings.shape).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels


def test_separated_classes_are_clustered_and_noise_is_not():
    assert clustering_metrics(*points(0.05)) == {"nmi": 1.0, "ami": pytest.approx(1.0)}
    noise = clustering_metrics(*points(20))
    assert abs(noise["ami"]) < 0.1
    assert noise["ami"] < noise["nmi"]


def test_the_same_rows_give_the_same_clusters():
    embeddings, _ = points(0.5)
    first, again = (kmeans(embeddings, 4) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) == 4


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], []])
def test_no_metrics_without_two_classes_or_two_rows_of_a_class(labels):
    embeddings = np.ones((len(labels), 4), np.float32) / 2
    assert clustering_metrics(embeddings, np.array(labels, int)) == {}


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

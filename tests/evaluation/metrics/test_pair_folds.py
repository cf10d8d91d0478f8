"""Pairs, folds and thresholds compared with loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.evaluation.metrics.pair_folds import (
    best_threshold,
    draw_pairs,
    fold_accuracies,
    pair_metrics,
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
    assert len(draw_pairs(np.arange(90) % 10).same) == 2 * 40
    assert len(draw_pairs(np.arange(20_000) % 10).same) == 6000


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

"""ROC, EER and TAR at FAR compared with scikit-learn and loops, and DIR at FAR with loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from arcloop.evaluation.metrics.verification import (
    NUM_BINS,
    SimilarityHistogram,
    dir_at_far,
    open_set_metrics,
)

BIN_WIDTH = 2 / NUM_BINS


def histogram(similarities, same):
    pairs = SimilarityHistogram()
    labels = np.where(np.asarray(same, bool), 0, 1)
    pairs.update(np.asarray(similarities, np.float32)[None], np.zeros(1, np.int64), labels)
    return pairs


def random_pairs(count=4000, seed=0):
    random = np.random.default_rng(seed)
    same = random.random(count) < 0.2
    similarities = np.tanh(random.standard_normal(count) + 1.5 * same)
    return similarities.astype(np.float32), same


pair_lists = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=30)


def test_bins_contain_the_similarities():
    similarities, same = random_pairs()
    pairs = histogram(similarities, same)
    for counts, kind in ((pairs.same, same), (pairs.different, ~same)):
        centres = np.repeat(np.linspace(-1, 1, NUM_BINS, endpoint=False) + BIN_WIDTH / 2, counts)
        assert np.allclose(centres, np.sort(similarities[kind]), atol=BIN_WIDTH)


def test_values_outside_the_range_count_in_the_last_bin():
    pairs = histogram([1.0000002, -1.0000002, 1, -1], [True, False, True, False])
    assert pairs.same[-1] == 2
    assert pairs.different[0] == 2
    assert pairs.same.sum() + pairs.different.sum() == 4


def test_roc_equals_scikit_learn():
    similarities, same = random_pairs()
    roc = histogram(similarities, same).roc()
    far, tar, threshold = roc_curve(same, similarities, drop_intermediate=False)
    at = np.round((1 - threshold[1:]) / BIN_WIDTH).astype(int)
    # A threshold falls into a bin: the curve there lies between the bin's two edges.
    assert np.all(roc.far[at - 1] <= far[1:] + 1e-12)
    assert np.all(far[1:] <= roc.far[np.minimum(at + 1, NUM_BINS)] + 1e-12)
    assert np.all(roc.tar[at - 1] <= tar[1:] + 1e-12)
    assert np.all(tar[1:] <= roc.tar[np.minimum(at + 1, NUM_BINS)] + 1e-12)
    assert (roc.far[-1], roc.tar[-1], roc.far[0], roc.tar[0]) == (1, 1, 0, 0)


def test_eer_equals_that_of_the_exact_curve():
    similarities, same = random_pairs()
    far, tar, _ = roc_curve(same, similarities, drop_intermediate=False)
    nearest = np.argmin(abs(far - (1 - tar)))
    expected = (far[nearest] + 1 - tar[nearest]) / 2
    assert histogram(similarities, same).eer() == pytest.approx(expected, abs=2e-3)


@given(pair_lists)
def test_eer_by_hand(pairs):
    similarities = np.array([value / 4 for value, _ in pairs])
    same = np.array([kind for _, kind in pairs])
    eer = histogram(similarities, same).eer()
    if same.all() or not same.any():
        assert eer is None
        return
    before = (0.0, 1.0)
    for threshold in sorted(set(similarities), reverse=True):
        far = float(np.mean(similarities[~same] >= threshold))
        frr = float(np.mean(similarities[same] < threshold))
        if far >= frr:
            break
        before = (far, frr)
    share = (before[1] - before[0]) / (before[1] - before[0] + far - frr)
    assert eer == pytest.approx(before[0] + share * (far - before[0]), abs=1e-12)


@given(pair_lists, st.sampled_from([0.05, 0.1, 0.25, 0.5, 1.0]))
def test_tar_at_far_by_hand(pairs, far):
    similarities = np.array([value / 4 for value, _ in pairs])
    same = np.array([kind for _, kind in pairs])
    tar = histogram(similarities, same).tar_at_far(far)
    if not same.any() or (~same).sum() * far < 1:
        assert tar is None
        return
    best = 0.0
    for threshold in (*similarities, 2):
        if np.mean(similarities[~same] >= threshold) <= far:
            best = max(best, float(np.mean(similarities[same] >= threshold)))
    assert tar == pytest.approx(best, abs=1e-12)


def test_rates_that_too_few_pairs_cannot_measure_are_left_out():
    similarities = np.linspace(-0.5, 0.9, 150)
    same = np.arange(150) >= 140  # 140 pairs of different classes
    metrics = histogram(similarities, same).compute()
    assert set(metrics) == {"eer", "tar_at_far_1e-2"}
    assert metrics == {"eer": 0, "tar_at_far_1e-2": 1}


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_one_kind_have_no_rates(same):
    assert histogram([0.5] * 5, [same] * 5).compute() == {}


@given(st.integers(0, 99), st.integers(0, 20))
def test_merged_parts_and_removed_pairs(seed, split):
    """20 queries, more than are counted at a time; some are selected, and each has its own pair."""
    random = np.random.default_rng(seed)
    similarities = random.integers(-4, 5, (20, 9)).astype(np.float32) / 4
    labels_Q, labels_G = random.integers(0, 3, 20), random.integers(0, 3, 9)
    counts = random.random(20) < 0.7
    whole, parts = SimilarityHistogram(), SimilarityHistogram()
    whole.update(similarities, labels_Q, labels_G, np.flatnonzero(counts))
    for rows in (np.flatnonzero(counts)[:split], np.flatnonzero(counts)[split:]):
        pairs = SimilarityHistogram()
        pairs.update(similarities, labels_Q, labels_G, rows)
        for row in rows:
            pairs.update(
                similarities[row, :1][None], labels_Q[row : row + 1], labels_Q[row : row + 1]
            )
        pairs.remove(similarities[rows, 0], np.ones(len(rows), bool))
        parts.merge(pairs)
    assert np.array_equal(parts.different, whole.different)
    assert np.array_equal(parts.same, whole.same)
    same = labels_Q[:, None] == labels_G
    for value in np.arange(-4, 5) / 4:
        place = min(int((value + 1) * NUM_BINS / 2), NUM_BINS - 1)
        found = (similarities == value) & counts[:, None]
        assert whole.same[place] == (found & same).sum()
        assert whole.different[place] == (found & ~same).sum()


open_set_query = st.tuples(st.integers(-4, 4), st.booleans(), st.integers(-4, 4), st.booleans())


def open_set(queries, far):
    best, right, other, known = (np.array(column) for column in zip(*queries, strict=True))
    return dir_at_far(best / 4, right & known, other / 4, known, far)


@given(st.lists(open_set_query, min_size=1, max_size=40), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_dir_at_far_by_hand(queries, far):
    absent = [best / 4 for best, _, _, known in queries if not known]
    unknown = absent or [other / 4 for _, _, other, _ in queries]
    known = [(right, best / 4) for best, right, _, known in queries if known]
    rate = open_set(queries, far)
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


def test_queries_without_a_row_of_another_class_are_not_impostors():
    right = np.ones(20, bool)
    assert open_set_metrics(np.full(20, 0.9), right, np.full(20, -np.inf), right) == {}

"""ROC, EER and TAR at FAR compared with scikit-learn and loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from arcloop.evaluation.metrics.verification import (
    NUM_BINS,
    SimilarityHistogram,
    least_similarities,
    too_few,
)

LEAST = least_similarities()
NEXT = np.concatenate([[np.inf], LEAST[:-1]])  # the least similarity of the next higher bin
ROUNDING = 2.0**-23  # of a float32 similarity to a multiple of 2**-24


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


def collapsed(spread, count=4000, dim=64):
    """Embeddings of 40 classes that all lie within about `spread` of one direction, in float64."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 40
    centres = random.standard_normal((40, dim))
    rows = random.standard_normal(dim) / np.sqrt(dim) + spread**0.5 / np.sqrt(dim) * (
        centres[labels] + 1.2 * random.standard_normal((count, dim))
    )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


@given(st.floats(-1, 1, width=32))
def test_a_bin_contains_its_similarities(value):
    (place,) = np.flatnonzero(histogram([value], [True]).same)
    assert LEAST[place] - ROUNDING <= value < NEXT[place] + ROUNDING
    if value >= 1 - 2.0**-12:  # every float32 has a bin of its own
        assert LEAST[place] == value


def test_bins_are_narrow():
    widths = -np.diff(LEAST)
    assert len(LEAST) == NUM_BINS
    assert (LEAST[0], LEAST[-1]) == (1, -1)
    assert np.all(widths[:-1] > 0)
    assert np.all(widths <= np.maximum(2.0**-24, 2.0**-12 * (1 + 2.0**-12 - LEAST[1:])))


def test_values_outside_the_range_count_in_the_last_bin():
    pairs = histogram([1.0000002, -1.0000002, 1, -1], [True, False, True, False])
    assert pairs.same[0] == 2
    assert pairs.different[-1] == 2
    assert pairs.same.sum() + pairs.different.sum() == 4


@pytest.mark.parametrize("spread", [1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_roc_equals_scikit_learn(spread):
    """With any spread of the embeddings, both curves agree at the thresholds of the histogram."""
    embeddings, labels = collapsed(spread, count=400)
    rows = embeddings.astype(np.float32)
    similarities, same = rows @ rows.T, labels[:, None] == labels
    pairs = SimilarityHistogram()
    pairs.update(similarities, labels, labels)
    roc = pairs.roc()
    # The oracle sees what the histogram sees: cosines up to 1.
    far, tar, threshold = roc_curve(
        same.ravel(), np.minimum(similarities, 1).ravel(), drop_intermediate=False
    )

    def exact(rates, at):  # accepted share at thresholds, of a curve of falling thresholds
        return rates[np.searchsorted(-threshold, -at, side="right") - 1]

    slack = np.where(roc.threshold < 1 - 2.0**-12, ROUNDING, 0)
    for rates, expected in ((roc.far, far), (roc.tar, tar)):
        assert np.all(exact(expected, roc.threshold + slack) <= rates)
        assert np.all(rates <= exact(expected, roc.threshold - slack))
    assert (roc.far[-1], roc.tar[-1], roc.far[0], roc.tar[0]) == (1, 1, 0, 0)


@pytest.mark.parametrize("spread", [1, 1e-2, 1e-4, 1e-5, 1e-6])
def test_rates_do_not_depend_on_the_spread_of_saturated_embeddings(spread):
    """TAR and EER against exact float64 cosines; bins of 1e-4 gave 0 instead of 0.68 at 1e-5."""
    embeddings, labels = collapsed(spread)
    queries, gallery = slice(0, 300), slice(300, None)
    rows = embeddings.astype(np.float32)
    pairs = SimilarityHistogram()
    pairs.update(rows[queries] @ rows[gallery].T, labels[queries], labels[gallery])
    exact = embeddings[queries] @ embeddings[gallery].T
    same = labels[queries, None] == labels[gallery]
    # Rounding moves a cosine by less than 2**-21, and a bin adds its width.
    error = 2.0**-21 + 2.0**-11 * (1 - np.quantile(exact[~same], 0.999))
    for far in (1e-2, 1e-3):
        threshold = np.quantile(exact[~same], 1 - far)
        measured = pairs.tar_at_far(far)
        low, high = ((exact[same] >= threshold + sign * error).mean() for sign in (1, -1))
        assert low - 1e-3 <= measured <= high + 1e-3
        assert spread < 1e-5 or high - low < 0.3  # at 1e-6, rounding is as large as the spread
    far, tar, _ = roc_curve(same.ravel(), exact.ravel())
    nearest = np.argmin(abs(far - (1 - tar)))
    allowed = 2e-3 + 2.0**-21 / spread
    assert pairs.eer() == pytest.approx((far[nearest] + 1 - tar[nearest]) / 2, abs=allowed)


@given(pair_lists)
def test_eer_by_hand(pairs):
    similarities = np.array([value / 4 for value, _ in pairs])
    same = np.array([kind for _, kind in pairs])
    eer = histogram(similarities, same).eer()
    if same.all() or not same.any():
        assert eer == "not measurable without pairs of both kinds"
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
    # 30 copies of each pair, so that there are enough of them
    tar = histogram(np.repeat(similarities, 30), np.repeat(same, 30)).tar_at_far(far)
    if not same.any() or (~same).sum() * far < 1:
        assert isinstance(tar, str)
        return
    best = 0.0
    for threshold in (*similarities, 2):
        if np.mean(similarities[~same] >= threshold) <= far:
            best = max(best, float(np.mean(similarities[same] >= threshold)))
    assert tar == pytest.approx(best, abs=1e-12)


def test_rates_that_too_few_pairs_cannot_measure_are_sentences():
    similarities = np.concatenate([np.linspace(-0.5, 0.8, 2999), [0.9] * 10])
    same = np.arange(3009) >= 2999
    rates = histogram(similarities, same).compute()
    assert [name for name, rate in rates.items() if not isinstance(rate, str)] == ["eer"]
    assert rates["tar_at_far_1e-2"] == (
        "not measurable with 2,999 pairs of different classes; 3,000 are needed to expect 30 errors"
    )
    assert "30,000,000 are needed" in rates["tar_at_far_1e-6"]
    enough = histogram([*similarities, -0.6], [*same, False]).compute()
    assert enough["tar_at_far_1e-2"] == 1
    assert isinstance(enough["tar_at_far_1e-3"], str)


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_one_kind_have_no_rates(same):
    rates = histogram([0.5] * 5, [same] * 5).compute()
    assert list(rates) == ["eer", *(f"tar_at_far_1e-{digits}" for digits in range(2, 7))]
    assert all("not measurable" in rate for rate in rates.values())


def test_the_rule_of_30():
    """With 30 expected errors, 90% of the observed rates are within 30% of the true one."""
    errors = np.random.default_rng(0).binomial(3000, 0.01, 20_000)
    assert np.mean(abs(errors / 30 - 1) <= 0.3) == pytest.approx(0.9, abs=0.02)
    assert too_few(3000, "pairs", 0.01) == ""
    assert too_few(2999, "pairs", 0.01)


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
        (place,) = np.flatnonzero(histogram([value], [True]).same)
        found = (similarities == value) & counts[:, None]
        assert whole.same[place] == (found & same).sum()
        assert whole.different[place] == (found & ~same).sum()

"""Open-set rates compared with loops and with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from arcloop.evaluation.metrics.open_set import (
    dir_at_far,
    error_rates_of_answers,
    open_set_metrics,
    unknown_auroc,
)

query = st.tuples(st.integers(-4, 4), st.booleans(), st.integers(-4, 4), st.booleans())


def columns(queries):
    best, right, other, known = (np.array(column) for column in zip(*queries, strict=True))
    return best / 4, right & known, other / 4, known


@given(st.lists(query, min_size=1, max_size=40), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_dir_at_far_by_hand(queries, far):
    best, right, other, known = columns(queries)
    if not known.any():
        return
    unknown = other if known.all() else best[~known]
    allowed = [
        threshold
        for threshold in np.arange(-4, 6) / 4
        if np.mean([score >= threshold for score in unknown]) <= far
    ]
    expected = np.mean(
        [
            hit and score >= min(allowed)
            for hit, score, is_known in zip(right, best, known, strict=True)
            if is_known
        ]
    )
    assert dir_at_far(best, right, known, unknown, far) == pytest.approx(expected)


@given(st.lists(query, min_size=2, max_size=40).filter(lambda q: len({k for *_, k in q}) == 2))
def test_auroc_equals_scikit_learn_and_all_comparisons(queries):
    best, _, _, known = columns(queries)
    ahead = best[known][:, None] - best[~known]
    expected = np.mean((ahead > 0) + (ahead == 0) / 2)
    assert unknown_auroc(best, known) == pytest.approx(expected, abs=1e-12)
    assert unknown_auroc(best, known) == pytest.approx(roc_auc_score(known, best), abs=1e-12)


def test_a_query_without_any_neighbour_is_the_least_similar():
    known = np.array([True, False])
    assert unknown_auroc(np.array([0.1, -np.inf]), known) == 1


def many(count, num_unknown, seed=0):
    random = np.random.default_rng(seed)
    known = np.arange(count) >= num_unknown
    best = random.random(count) + 0.5 * known
    return best, known & (random.random(count) < 0.9), random.random(count), known


def test_real_unknown_queries_replace_the_simulation():
    best, right, other, known = many(4000, 3000)
    rates = open_set_metrics(best, right, other, known)
    assert rates == open_set_metrics(best, right, other + 1, known)
    assert rates["dir_at_far_1e-2"] == dir_at_far(best, right, known, best[:3000], 0.01)
    assert rates["unknown_auroc"] == pytest.approx(roc_auc_score(known, best))
    assert list(rates) == ["dir_at_far_1e-1", "dir_at_far_1e-2", "unknown_auroc"]


def test_without_unknown_queries_only_dir_is_simulated():
    best, right, other, known = many(3000, 0)
    rates = open_set_metrics(best, right, other, known)
    assert rates["dir_at_far_1e-2"] == dir_at_far(best, right, known, other, 0.01)
    assert rates["unknown_auroc"] == "not measurable without queries of unknown classes"
    answers = error_rates_of_answers(best > 0.7, right, known)
    assert answers["fpir"] == "not measurable without queries of unknown classes"
    assert answers["fnir"] == pytest.approx(1 - np.mean((best > 0.7) & right))


def test_rates_that_too_few_queries_cannot_measure_are_sentences():
    rates = open_set_metrics(*many(400, 299))
    assert rates["dir_at_far_1e-1"] == (
        "not measurable with 299 unknown queries; 300 are needed to expect 30 errors"
    )
    assert not isinstance(open_set_metrics(*many(400, 300))["dir_at_far_1e-1"], str)
    few = open_set_metrics(*many(400, 29))
    assert few["unknown_auroc"].startswith("not measurable with 29 queries of unknown classes")
    assert not isinstance(open_set_metrics(*many(400, 30))["unknown_auroc"], str)
    absent = open_set_metrics(*many(400, 400))
    assert set(absent.values()) == {"not measurable without queries of known classes"}


def test_queries_without_a_row_of_another_class_are_not_impostors():
    right = np.ones(400, bool)
    rates = open_set_metrics(np.full(400, 0.9), right, np.full(400, -np.inf), right)
    assert rates["dir_at_far_1e-1"].startswith("not measurable with 0 unknown queries")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=30))
def test_error_rates_of_answers_by_hand(queries):
    queries = [*queries, *[(True, False, False), (False, False, False)] * 15,
               *[(True, True, True), (False, True, True)] * 15]  # fmt: skip
    answered, right, known = (np.array(column) for column in zip(*queries, strict=True))
    rates = error_rates_of_answers(answered, right & known, known)
    unknown = [a for a, _, k in queries if not k]
    missed = [not (a and r) for a, r, k in queries if k]
    assert rates["fpir"] == pytest.approx(sum(unknown) / len(unknown))
    assert rates["fnir"] == pytest.approx(sum(missed) / len(missed))
    few = error_rates_of_answers(answered[:3], right[:3], np.ones(3, bool))
    assert few["fnir"].startswith("not measurable with 3 queries of known classes")

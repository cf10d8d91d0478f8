"""Intervals cover the truth as often as they claim, and equal those of scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from scipy import stats
from tests.evaluation.conftest import CORNERS, labelled_corners
from tests.evaluation.test_evaluator import evaluated, sizes

from arcloop.errors import ArtifactError
from arcloop.evaluation import intervals
from arcloop.evaluation.intervals import Units, compute_intervals, resample, wilson_interval
from arcloop.evaluation.metrics.open_set import dir_at_far
from arcloop.evaluation.query_results import QueryResults, load_query_results


def results(correct, labels, *, groups=None, best=None, other=None, known=None, **metrics):
    """Results of queries that are right where `correct` is, with other similarities as given."""
    count = len(correct)
    correct, labels = np.asarray(correct, bool), np.asarray(labels, np.int32)
    best = np.ones(count) if best is None else best
    other = np.zeros(count) if other is None else other
    return QueryResults(
        label=labels,
        predicted=np.where(correct, labels, -1),
        nearest=np.zeros(count, np.int32),
        similarity=np.ones(count, np.float32),
        best_same=np.asarray(best, np.float32),
        best_other=np.asarray(other, np.float32),
        best_is_right=correct,
        known=np.ones(count, bool) if known is None else np.asarray(known),
        group=groups,
        metrics={"unknown_rate": np.zeros(count, bool), **metrics},
    )


@pytest.mark.parametrize(
    ("classes", "per_class", "share", "correlation"),
    [
        (5, 60, 0.9, 0),  # few classes: queries are resampled
        (1, 100, 0.98, 0),  # often all are right
        (30, 20, 0.9, 0.1),  # beta-binomial classes are resampled as a whole
        (200, 3, 0.95, 0.3),
    ],
)
def test_95_percent_intervals_cover_the_truth(classes, per_class, share, correlation, monkeypatch):
    """Of 500 simulated evaluations; the standard error of the coverage is 1%."""
    random = np.random.default_rng(1)
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    labels, covered = np.repeat(np.arange(classes), per_class), []
    for _ in range(500):
        accuracy = np.full(classes, share)
        if correlation:
            spread = 1 / correlation - 1
            accuracy = random.beta(share * spread, (1 - share) * spread, classes)
        correct = random.random(len(labels)) < accuracy[labels]
        low, high = compute_intervals(results(correct, labels), {"top1": correct.mean()})["top1"]
        covered.append(low <= share <= high)
    assert 0.92 <= np.mean(covered) <= (0.97 if share < 0.98 else 1)


def test_resampled_queries_would_be_too_narrow_for_dependent_classes():
    """With a correlation of 0.5 the interval is more than 1.5 times as wide as that of queries."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 10)
    accuracy = random.beta(0.9, 0.1, 100)
    correct = random.random(1000) < accuracy[labels]
    metrics = {"top1": correct.mean()}
    low, high = compute_intervals(results(correct, labels), metrics)["top1"]
    alone = results(correct, labels, groups=np.arange(1000))
    narrow_low, narrow_high = compute_intervals(alone, metrics)["top1"]
    assert high - low > 1.5 * (narrow_high - narrow_low)


def test_intervals_equal_those_of_scipy():
    """The percentile bootstrap of scipy with the same level and independent resamples."""
    random = np.random.default_rng(0)
    values = random.beta(8, 2, 2000).astype(np.float32)
    found = compute_intervals(
        results(values > 0.5, np.zeros(2000), map_at_r=values), {"map_at_r": float(values.mean())}
    )["map_at_r"]
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=random
    ).confidence_interval
    width = expected.high - expected.low
    assert np.abs(np.subtract(found, expected)).max() < 0.08 * width


def test_cluster_sums_equal_copied_rows():
    """A resample has the value that the queries of its units have, copied as often as drawn."""
    random = np.random.default_rng(0)
    labels = random.integers(40, size=300)
    scores = random.random((2, 300)).astype(np.float32)
    right, known = random.random(300) < 0.8, random.random(300) < 0.7
    unknown = random.random(300) < 0.3
    values = results(
        right, labels, best=scores[0], other=scores[1], known=known, map_at_r=scores[0],
        unknown_rate=unknown,
    )  # fmt: skip
    units = Units.of(values)
    assert (units.kind, units.independent) == ("classes", 40)
    found = resample(values, units)
    counts = next(intervals._resampled_counts(40))
    weights = counts[:, units.rows]
    assert counts.sum(axis=1).tolist() == [40] * len(counts)
    assert found["top1"].shape == (intervals.RESAMPLES,)
    expected = (weights @ unknown) / weights.sum(axis=1)
    assert np.allclose(found["unknown_rate"][:50], expected, atol=1e-9)
    of_known = weights * known
    assert np.allclose(found["top1"][:50], (of_known @ right) / of_known.sum(axis=1), atol=1e-9)
    missed, other = ~right | unknown, weights * ~known
    assert np.allclose(found["fnir"][:50], (of_known @ missed) / of_known.sum(axis=1), atol=1e-9)
    assert np.allclose(found["fpir"][:50], (other @ ~unknown) / other.sum(axis=1), atol=1e-9)
    assert np.allclose(
        found["map_at_r"][:50], (of_known @ scores[0]) / of_known.sum(axis=1), atol=1e-6
    )
    for resampled in range(5):
        rows = np.repeat(np.arange(300), weights[resampled].astype(int))
        expected = identification_rate(
            scores.max(axis=0)[rows], right[rows], known[rows], 0.1
        )  # fmt: skip
        assert found["dir_at_far_1e-1"][resampled] == pytest.approx(expected, abs=1e-12)


def identification_rate(best, right, known, far):
    unknown = best[~known]
    return max(
        np.mean((right & (best >= threshold))[known])
        for threshold in [*best, 2]
        if np.mean(unknown >= threshold) <= far
    )


def test_the_false_accept_rate_may_be_reached_exactly():
    """At a rate of 10%, 2 of 20 unknown queries are accepted, and the 3 best known ones."""
    other = np.arange(20) / 20
    values = results([True] * 20, [0] * 20, best=other + 0.01, other=other)
    (rate,) = intervals._statistics(values, np.arange(20))(np.ones((1, 20)))["dir_at_far_1e-1"]
    assert rate == dir_at_far(other + 0.01, values.correct, values.known, other, 0.1) == 0.15


@effort(max_examples=30)
@given(
    queries=labelled_corners(3, st.integers(4, 40)), gallery=labelled_corners(3, st.integers(2, 25))
)
def test_without_resampling_the_statistics_are_the_metrics(queries, gallery):
    result = evaluated(queries, gallery)
    values = result.per_query
    rows = np.arange(len(queries[1]))
    once = intervals._statistics(values, rows)(np.ones((1, len(rows))))
    assert {"top1", "recall_at_5", "unknown_rate", "mean_class_accuracy"} <= once.keys()
    for name, (value,) in once.items():
        if np.isfinite(value) and name not in result.not_measurable:
            assert value == pytest.approx(result.metrics[name], abs=1e-6), name
    assert result.intervals.keys() <= result.metrics.keys()
    for name, (low, high) in result.intervals.items():
        assert 0 <= low <= result.metrics[name] <= high <= 1, name


@pytest.mark.parametrize("trials", [1, 7, 100, 10**6])
@pytest.mark.parametrize("share", [0, 1])
def test_wilson(share, trials):
    expected = stats.binomtest(share * trials, trials).proportion_ci(method="wilson")
    assert wilson_interval(share, trials) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_perfect_score_is_not_certain():
    found = compute_intervals(results([True] * 100, [0] * 100), {"top1": 1.0})
    assert found["top1"] == wilson_interval(1, 100)
    assert 0.96 < found["top1"][0] < 0.97
    # 40 classes of 100 queries are 40 trials: the queries of a class may all fail together.
    found = compute_intervals(results([True] * 4000, np.arange(4000) % 40), {"top1": 1.0})
    assert found["top1"] == wilson_interval(1, 40)


def test_trials_are_counted_among_the_queries_of_the_mean():
    """MAP@R and top-1 are means over the known queries, which are 60 of 1,000; FPIR is not."""
    known = np.arange(1000) < 60
    perfect = results(known, [0] * 1000, known=known, map_at_r=known)
    of_known = ("map_at_r", "dir_at_far_1e-1", "top1")
    found = compute_intervals(perfect, dict.fromkeys((*of_known, "fpir"), 1.0))
    assert {found[name] for name in of_known} == {wilson_interval(1, 60)}
    assert found["fpir"] == wilson_interval(1, 940)


def test_a_metric_that_is_the_same_for_all_queries_has_no_interval():
    fifth = np.full(100, 0.2, np.float32)
    found = compute_intervals(
        results([True] * 100, [0] * 100, precision_at_5=fifth), {"precision_at_5": 0.2}
    )
    assert "precision_at_5" not in found


def test_groups_are_resampled_where_there_are_any():
    labels = np.arange(100)
    units = Units.of(results([True] * 100, labels, groups=np.repeat([3, 7, -1], [50, 47, 3])))
    assert (units.kind, units.independent) == ("groups", 5)
    assert len(set(units.rows[:50])) == 1
    assert len(set(units.rows[97:])) == 3
    assert Units.of(results([True] * 100, labels, groups=np.full(100, -1))).kind == "classes"
    assert Units.of(results([True] * 100, labels % 29)).kind == "queries"


def test_many_units_are_joined_without_changing_the_interval():
    random = np.random.default_rng(0)
    correct = random.random(30_000) < 0.9
    units = Units.of(results(correct, np.zeros(30_000)))
    assert units.independent == 30_000
    assert np.bincount(units.rows).tolist() == [3] * 10_000
    (low, high) = compute_intervals(results(correct, np.zeros(30_000)), {"top1": correct.mean()})[
        "top1"
    ]
    error = np.sqrt(0.09 / 30_000)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)


@effort(max_examples=20)
@given(
    queries=labelled_corners(3, st.integers(1, 12)),
    gallery=labelled_corners(3, st.integers(1, 25)),
    batches=sizes,
)
def test_stored_results_equal_brute_force(queries, gallery, batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    result = evaluated(queries, gallery, batches=batches, threshold=0.5)
    result.per_query.save(folder)
    first = (folder / "queries.npz").read_bytes()
    result.per_query.save(folder)
    assert (folder / "queries.npz").read_bytes() == first
    stored = load_query_results(folder)
    cosines = queries[0] @ gallery[0].T
    same = queries[1][:, None] == gallery[1]
    for query, (cosine, label) in enumerate(zip(cosines, queries[1], strict=True)):
        nearest = int(cosine.argmax())
        right, wrong = (cosine[of].max(initial=-np.inf) for of in (same[query], ~same[query]))
        assert stored.nearest[query] == nearest
        assert stored.predicted[query] == gallery[1][nearest]
        assert stored.correct[query] == (gallery[1][nearest] == label)
        assert stored.similarity[query] == cosine[nearest]
        assert stored.known[query] == (label in gallery[1])
        assert (stored.best_same[query], stored.best_other[query]) == (right, wrong)
        if np.isfinite([right, wrong]).all():
            assert stored.margin[query] == right - wrong
        else:
            assert np.isnan(stored.margin[query])
        assert stored.metrics["unknown_rate"][query] == (cosine[nearest] < 0.5)
    for name, values in stored.metrics.items():
        if name in ("recall_at_5", "precision_at_10") and stored.known.any():
            of_known = values[stored.known]
            assert of_known.mean() == pytest.approx(result.metrics[name], abs=1e-6)
    with np.load(folder / "queries.npz") as arrays:
        assert np.array_equal(arrays["correct"], stored.correct)
        assert np.array_equal(arrays["margin"], stored.margin, equal_nan=True)


def test_margins_of_rows_beyond_the_kept_ranks():
    """Each class has one row, so only few ranks are kept, but the row may have the last rank."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((80, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    classes = [str(label) for label in range(40)]
    found = evaluated(
        (rows[40:], np.arange(40)), (rows[:40], np.arange(40)), classes=classes, chunks=[7]
    ).per_query
    assert (found.metrics["mrr"] < 0.05).any()
    assert np.allclose(found.best_same, (rows[40:] * rows[:40]).sum(axis=1), atol=1e-6)


def test_a_file_has_about_70_bytes_a_query(tmp_path):
    rows = np.tile(CORNERS, (64, 1))
    labels = np.arange(1024) % 3
    evaluated(
        (rows, labels), (CORNERS, labels[:16]), batches=[1024], batch_size=1024
    ).per_query.save(tmp_path)
    assert (tmp_path / "queries.npz").stat().st_size < 75 * 1024 + 8000  # and headers


def test_a_missing_or_damaged_file_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match="arcloop evaluate"):
        load_query_results(tmp_path)
    for content in (b"", b"no zip"):
        (tmp_path / "queries.npz").write_bytes(content)
        with pytest.raises(ArtifactError, match="cannot be read"):
            load_query_results(tmp_path)
    np.savez(tmp_path / "queries.npz", label=np.zeros(3, np.int32))
    with pytest.raises(ArtifactError, match="cannot be read: 'predicted'"):
        load_query_results(tmp_path)

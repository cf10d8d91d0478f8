"""Statistics of seeds, against scipy.stats."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.ranking import Ranking


def ranked(sweep):
    ranking = Ranking.of(sweep.path)
    return ranking.keys, ranking.settings


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_interval_of_the_mean(values):
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(statistics.fmean(values))
    if np.std(values) > 1e-9:
        low, high = stats.t.interval(
            0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
        )
        assert 2 * estimate.half_width == pytest.approx(high - low, rel=1e-4)


def test_one_value_has_no_interval():
    assert Estimate.of([0.5]).half_width is None
    assert str(Estimate.of([0.5])) == "0.5000"


def test_jobs_are_grouped_over_seeds_and_the_best_setting_is_first(sweep):
    for seed, score in enumerate([0.90, 0.92, 0.94]):
        sweep.job({"head.margin": 0.3, "seed": seed}, score, {"top1": score - 0.1, "eer": 0.1})
        sweep.job({"head.margin": 0.5, "seed": seed}, score + 0.01, {"top1": score - 0.2})
    sweep.job({"head.margin": 0.5, "seed": 3}, None, failure="diverged\n  remedy: less")
    sweep.job({"head.margin": 0.7, "seed": 0}, None, failure="diverged")
    keys, settings = ranked(sweep)
    assert keys == ["head.margin"]
    assert [setting.values["head.margin"] for setting in settings] == ["0.5", "0.3", "0.7"]
    best, second, last = settings
    assert (len(best.jobs), best.finished) == (4, 3)
    assert best.objective.mean == pytest.approx(0.93)
    assert second.metrics["top1"].mean == pytest.approx(0.82)
    assert "eer" in second.metrics
    assert last.objective is None
    assert last.metrics == {}


def test_monitor_mode_min_ranks_the_smallest_first(sweep):
    for margin, loss in ((0.3, 0.5), (0.5, 0.2)):
        sweep.job({"head.margin": margin}, loss, mode="min")
    _, settings = ranked(sweep)
    assert settings[0].values["head.margin"] == "0.5"


def test_keys_without_override_are_read_from_the_config(sweep):
    """One sweep varies the scale with the default margin, a second one sets the margin."""
    for scale, score in ((16, 0.8), (32, 0.9)):
        sweep.job({"head.scale": scale}, score)
    sweep.job({"head.scale": 32, "head.margin": 0.5}, 0.95)
    keys, settings = ranked(sweep)
    assert set(keys) == {"head.scale", "head.margin"}
    assert {(s.values["head.scale"], s.values["head.margin"]) for s in settings} == {
        ("16", "0.3"), ("32", "0.3"), ("32", "0.5"),
    }  # fmt: skip


def test_launcher_and_sweep_overrides_are_not_varied_keys(sweep):
    sweep.job({"head.margin": 0.3, "launcher.jobs": 2}, 0.9)
    sweep.job({"head.margin": 0.5, "launcher.jobs": 3, "sweep.trials": 9}, 0.9)
    keys, _ = ranked(sweep)
    assert keys == ["head.margin"]

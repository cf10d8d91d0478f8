"""The ranking: ties, tests against the best setting, missing seeds, monitors and conditions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from arcloop.errors import ConfigError
from arcloop.pipeline.leaderboard.comparison import holm, paired_p_value
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.tables import notes

VALUES = st.lists(st.floats(0, 1), min_size=8, max_size=8)


def margins(ranking):
    return [setting.values["head.margin"] for setting in ranking.settings]


@given(VALUES, VALUES)
def test_paired_p_value_is_that_of_scipy(one, other):
    differences = [a - b for a, b in zip(one, other, strict=True)]
    if max(differences) - min(differences) < 1e-6:
        return
    first = {str(seed): value for seed, value in enumerate(one)} | {"only here": 0.0}
    second = {str(seed): value for seed, value in reversed(list(enumerate(other)))} | {"there": 9.0}
    assert paired_p_value(first, second) == pytest.approx(
        stats.ttest_rel(one, other).pvalue, rel=1e-6
    )


def test_paired_p_value_of_equal_differences():
    assert paired_p_value({"0": 0.5, "1": 0.7}, {"0": 0.5, "1": 0.7}) == 1.0
    assert paired_p_value({"0": 0.5, "1": 0.75}, {"0": 0.25, "1": 0.5}) == 0.0
    assert paired_p_value({"0": 0.5, "1": 0.7}, {"1": 0.5, "2": 0.7}) is None


def rejected_by_holm(p_values, alpha):
    """Holm's step-down procedure: reject the smallest p values until one is too large."""
    rejected = set()
    for count, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > alpha / (len(p_values) - count):
            break
        rejected.add(place)
    return rejected


@given(st.lists(st.integers(0, 1000), max_size=6), st.integers(1, 999))
def test_corrected_p_values_reject_what_the_procedure_of_holm_rejects(thousandths, alpha):
    p_values, alpha = [p / 1000 for p in thousandths], (alpha + 0.5) / 1000
    corrected = holm(p_values)
    assert {i for i, p in enumerate(corrected) if p <= alpha} == rejected_by_holm(p_values, alpha)


def test_ties_are_ordered_by_another_metric_of_val(sweep):
    for margin, second in ((0.2, 0.4), (0.3, 0.9), (0.4, 0.6)):
        # The objectives differ less than what is printed, in another order; query is not used.
        val = {"val_map_at_r": 1.0, "val_margin": second}
        sweep.job({"head.margin": margin}, 1 - margin / 1e5, {"top1": 1 - second}, val=val)
    sweep.job({"head.margin": 0.5}, 0.99, val={"val_map_at_r": 1.0, "val_margin": 1.0})
    ranking = Ranking.of(sweep.path)
    assert ranking.second == "val_margin"
    assert margins(ranking) == ["0.3", "0.4", "0.2", "0.5"]
    assert ranking.ranks == ["1=", "1=", "1=", "4"]
    assert notes(ranking)[0] == "3 settings tie at val_top1 1.0000; val_margin of val orders them."


def test_a_smaller_error_is_better_among_ties(sweep):
    for margin, eer in ((0.2, 0.3), (0.3, 0.1), (0.4, 0.2)):
        sweep.job({"head.margin": margin}, 0.9, val={"val_eer": eer})
    assert margins(Ranking.of(sweep.path)) == ["0.3", "0.4", "0.2"]


def test_without_ties_no_second_metric_is_used(sweep):
    for margin in (0.2, 0.3):
        sweep.job({"head.margin": margin}, margin, val={"val_margin": 1 - margin})
    ranking = Ranking.of(sweep.path)
    assert (ranking.second, ranking.ranks, ranking.tied) == (None, ["1", "2"], [])
    assert "add seed=0,1,2" in notes(ranking)[0]


def test_settings_that_lack_seeds_follow_the_complete_ones(sweep):
    for margin, scores in ((0.2, [0.7, 0.7, 0.7]), (0.3, [0.9, 0.9]), (0.4, [0.8, 0.8, 0.8])):
        for seed, score in enumerate(scores):
            sweep.job({"head.margin": margin, "seed": seed}, score)
    sweep.job({"head.margin": 0.3, "seed": 2}, None, failure="diverged")
    sweep.job({"head.margin": 0.5, "seed": 0}, 0.99)  # the other seeds have not started
    for seed in (3, 4):  # added later
        sweep.job({"head.margin": 0.4, "seed": seed}, 0.8)
    ranking = Ranking.of(sweep.path)
    assert margins(ranking) == ["0.4", "0.2", "0.5", "0.3"]
    assert [setting.missing for setting in ranking.settings] == [0, 0, 2, 1]


def test_settings_are_compared_with_the_best_over_shared_seeds(sweep):
    scores = {0.2: [0.90, 0.92, 0.94, 0.91], 0.3: [0.92, 0.91, 0.96, 0.90], 0.4: [0.80, 0.82, 0.85]}
    for margin, values in scores.items():
        for seed, score in enumerate(values):
            sweep.job({"head.margin": margin, "seed": seed}, score)
    sweep.job({"head.margin": 0.5, "seed": 7}, 0.1)
    ranking = Ranking.of(sweep.path)
    best, near, far = "0.2", "0.3", "0.4"
    if margins(ranking)[0] != best:
        best, near = near, best
    p = [
        stats.ttest_rel(scores[float(best)][: len(scores[float(m)])], scores[float(m)]).pvalue
        for m in (near, far)
    ]
    expected = {near: max(2 * min(p), p[0]), far: 2 * p[1]}
    found = {margins(ranking)[place]: p for place, p in ranking.p_values.items()}
    assert found == pytest.approx(expected)
    assert 0.05 < expected[near] < 0.9
    assert expected[far] < 0.05
    similar = [m for place, m in enumerate(margins(ranking)) if ranking.is_like_best(place)]
    assert similar == [near]
    assert "1 of 2" in notes(ranking)[-1]


def test_different_monitors_are_refused_and_one_metric_ranks_all(sweep):
    sweep.job({"head.margin": 0.2}, 0.9, val={"val_eer": 0.3})
    loss = {"monitor": "train_loss", "monitor_mode": "min"}
    sweep.job({"head.margin": 0.3}, 0.5, mode="min", config=loss, val={"val_eer": 0.1})
    with pytest.raises(ConfigError) as refused:
        Ranking.of(sweep.path)
    message = str(refused.value)
    assert "val_top1 (max) in 1 jobs, train_loss (min) in 1 jobs" in message
    assert "--monitor val_eer" in message
    ranking = Ranking.of(sweep.path, monitor="val_eer")
    assert margins(ranking) == ["0.3", "0.2"]
    assert not ranking.higher_is_better
    assert [setting.objective.mean for setting in ranking.settings] == [0.1, 0.3]
    with pytest.raises(ConfigError, match="no job recorded top1 on val"):
        Ranking.of(sweep.path, monitor="top1")


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("head.margin=0.20", {("0.2", "0"), ("0.2", "1")}),
        ("seed>0", {("0.2", "1"), ("0.3", "1")}),
        ("head.margin != 0.2", {("0.3", "0"), ("0.3", "1")}),
        ("state=failed", {("0.3", "1")}),
        ("trainer.accelerator=cpu", {("0.2", "0"), ("0.2", "1"), ("0.3", "0")}),
    ],
)
def test_conditions_select_jobs(sweep, condition, expected):
    for margin in (0.2, 0.3):
        for seed in (0, 1):
            failure = "x" if (margin, seed) == (0.3, 1) else None
            sweep.job(
                {"head.margin": margin, "seed": seed}, None if failure else 0.9, None, failure
            )
    jobs = Ranking.of(sweep.path, where=[condition]).jobs
    assert {(job.overrides["head.margin"], job.overrides["seed"]) for job in jobs} == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("head.margn=1", "did you mean head.margin"),
        ("head.margin", "cannot read the condition"),
        ("head.margin>1", "no job meets"),
    ],
)
def test_invalid_conditions(sweep, condition, message):
    sweep.job({"head.margin": 0.2}, 0.9)
    with pytest.raises(ConfigError, match=message):
        Ranking.of(sweep.path, where=[condition])

"""Trials: their seeds, conditional and zipped keys, grids, and several objectives."""

import math
import statistics

import pytest
from optuna.samplers import NSGAIISampler, RandomSampler
from scipy import stats

from arcloop.pipeline.sweeps.job import PrunedObjective, TemporaryFailure
from arcloop.pipeline.sweeps.space import Space

from .searches import CONDITIONAL, SPACE, Jobs, Killed, search, startup, states, study


def test_a_trial_runs_all_seeds(tmp_path):
    values = {0: [0.5, 0.7, 0.9], 1: [0.2, 0.2, 0.5]}
    jobs = Jobs(result=lambda number, _: values[(number - 1) // 3][(number - 1) % 3])
    space = ["seed=0,1,5", *SPACE]
    for how, direction in (("mean", "max"), ("lower", "max"), ("lower", "min")):
        folder, jobs.proposed, jobs.numbers = tmp_path / f"{how}-{direction}", [], []
        search(folder, jobs, space, trials=2, at_once=2, objective=how, direction=direction)
        assert jobs.numbers == [0, 1, 2, 3, 4, 5]
        assert [job[0] for job in jobs.proposed] == ["seed=0", "seed=1", "seed=5"] * 2
        assert len({job[1:] for job in jobs.proposed}) == 2
        for trial in study(folder).trials:
            of_trial = values[trial.number]
            expected = statistics.fmean(of_trial)
            if how == "lower":
                low, high = stats.t.interval(0.95, 2, expected, stats.sem(of_trial))
                expected = low if direction == "max" else high
            assert trial.value == pytest.approx(expected)


def test_the_seeds_of_a_trial_decide_on_its_state(tmp_path):
    """Number of the job -> outcome: permanent and temporary failures, and a pruned trial."""
    outcomes = {
        1: math.nan, 2: TemporaryFailure(math.nan), 5: TemporaryFailure(math.nan),
        8: PrunedObjective(math.nan), 9: PrunedObjective(math.nan),
        10: TemporaryFailure(math.nan),
    }  # fmt: skip
    jobs = Jobs(result=lambda number, score: outcomes.get(number - 1, score))
    space = [*SPACE, "seed=0,1"]
    search(tmp_path, jobs, space, trials=7)
    first = ["COMPLETE", "RUNNING", "RUNNING", "COMPLETE", "PRUNED", "RUNNING", "COMPLETE"]
    first[0] = "FAIL"
    assert states(tmp_path) == first
    again = Jobs()
    repeated = search(tmp_path, again, space, trials=7, at_once=12)
    assert again.numbers == [2, 3, 4, 5, 10, 11]  # of consecutive trials, and of another one
    assert repeated == [jobs.proposed[number] for number in again.numbers]
    assert set(states(tmp_path)) == {"FAIL", "PRUNED", "COMPLETE"}


def test_a_key_that_a_choice_lacks_is_not_a_parameter_of_its_trials(tmp_path):
    heads = set()
    for job in search(tmp_path, Jobs(), CONDITIONAL, startup, trials=12):
        values = dict(override.split("=") for override in job)
        heads.add(values["head"])
        assert ("head.margin" in values) == (values["head"] == "arcface")
    assert heads == {"arcface", "softmax"}
    for trial in study(tmp_path).trials:
        assert ("head.margin" in trial.params) == (trial.params["head"] == "arcface")


def test_equal_trials_do_not_run_at_the_same_time(tmp_path):
    class Distinct(Jobs):
        def __call__(self, batch, initial_job_idx):
            assert len(set(map(tuple, batch))) == len(batch)
            return super().__call__(batch, initial_job_idx)

    space = ["head=softmax,adacos", "seed=0,1"]
    jobs = search(tmp_path, Distinct(), space, RandomSampler, trials=6, at_once=6)
    trials = study(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert len(jobs) < 12


def test_keys_that_vary_together_are_one_parameter(tmp_path):
    space = ["head.margin=0.2,0.3,0.4", "optimizer.lr=interval(0.1,0.2)", "head.scale=8,16,32"]
    jobs = search(tmp_path, Jobs(), space, RandomSampler, zip=["head.scale", "head.margin"])
    pairs = {(job[0].partition("=")[2], job[2].partition("=")[2]) for job in jobs}
    assert 1 < len(pairs) <= 3
    assert pairs <= {("0.2", "8"), ("0.3", "16"), ("0.4", "32")}


def test_a_grid_runs_every_combination_once(tmp_path):
    space = [
        "head.margin=0.2,0.4", "head=arcface,softmax", "optimizer.lr=0.1,0.2", "seed=0,1",
    ]  # fmt: skip
    killed = Jobs(kill_at=5)
    with pytest.raises(Killed):
        search(tmp_path, killed, space, sampler=None, trials=None)
    assert states(tmp_path) == ["COMPLETE", "COMPLETE", "RUNNING"]
    rest = search(tmp_path, Jobs(), space, sampler=None, trials=None, at_once=4)
    assert killed.proposed[4:] == rest[:1]
    found = killed.proposed[:4] + rest
    assert len(found) == 12
    assert sorted(found) == sorted(map(tuple, Space.of(space).jobs()))
    assert search(tmp_path, Jobs(), space, sampler=None, trials=None) == []


@pytest.mark.parametrize("sampler", [startup, NSGAIISampler], ids=["tpe", "nsga2"])
def test_several_objectives_have_pareto_optimal_trials(tmp_path, sampler, capsys):
    def result(number, _):
        return [round(math.sin(number), 3), float(number * 7 % 5)]

    space, names = [*SPACE, "seed=0,1"], ["val_top1", "index_bytes"]
    killed = Jobs(11, result)
    with pytest.raises(Killed):
        search(tmp_path, killed, space, sampler, trials=9, objectives=names)
    rest = search(tmp_path, Jobs(result=result), space, sampler, trials=9, objectives=names)
    assert rest[0] == killed.proposed[10]
    trials = study(tmp_path).trials
    assert states(tmp_path) == ["COMPLETE"] * 9
    expected = [(a + b) / 2 for a, b in zip(result(1, 0), result(2, 0), strict=True)]
    assert trials[0].values == pytest.approx(expected)
    best = [
        one.number for one in trials
        if not any(
            other.values != one.values
            and other.values[0] >= one.values[0] and other.values[1] <= one.values[1]
            for other in trials
        )
    ]  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trial ")]
    assert sorted(int(line.split()[1].rstrip(":")) for line in lines) == best

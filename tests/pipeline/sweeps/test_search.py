"""Search with Optuna: proposals, seeds, retries, and continuing after a kill."""

import contextlib
import json
import math
import sqlite3
import statistics
from types import SimpleNamespace

import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from scipy import stats

from arcloop.errors import ConfigError, ResourceError
from arcloop.pipeline.sweeps.job import PrunedObjective, TemporaryFailure
from arcloop.pipeline.sweeps.proposals import Proposals
from arcloop.pipeline.sweeps.pruning import STORAGE
from arcloop.pipeline.sweeps.search import Search
from arcloop.pipeline.sweeps.space import Space

SPACE = [
    "name=x", "head.margin=interval(0.2,0.6)", "head.scale=16,32",
    "loader.batch_size=int(interval(1,9))",
]  # fmt: skip
CONDITIONAL = ["data=synthetic", "head.margin=interval(0.2,0.6)", "head=arcface,softmax"]


class Killed(BaseException):
    pass


class Jobs:
    """A launcher whose jobs compute a formula; records the overrides and the number of each job."""

    def __init__(self, kill_at=None, result=None):
        self.proposed, self.numbers, self.kill_at, self.result = [], [], kill_at, result

    def __call__(self, batch, initial_job_idx):
        returned = []
        for number, job in enumerate(batch, start=initial_job_idx):
            if len(self.proposed) == self.kill_at:
                raise Killed
            self.proposed.append(tuple(job))
            self.numbers.append(number)
            values = dict(override.split("=") for override in job)
            score = -((float(values.get("head.margin", 0.1)) - 0.4) ** 2)
            value = score if self.result is None else self.result(len(self.proposed), score)
            returned.append(SimpleNamespace(return_value=value))
        return returned


def search(
    folder, jobs, space=SPACE, sampler=TPESampler, verb="train", *, trials=6, at_once=1, **more
):
    settings = {"monitor": "val_top1", "direction": "max", **more}
    Search(sampler, trials=trials, seed=0, at_once=at_once, **settings).run(
        verb, space, str(folder), jobs
    )
    return jobs.proposed


def study(folder):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / STORAGE}")


def states(folder):
    return [trial.state.name for trial in study(folder).trials]


def startup(seed):
    return TPESampler(seed=seed, n_startup_trials=3, multivariate=True, group=True)


def test_values_are_in_the_given_space(tmp_path):
    for job in search(tmp_path, Jobs(), sampler=RandomSampler, trials=10):
        values = dict(override.split("=") for override in job)
        assert list(values) == ["name", "head.margin", "head.scale", "loader.batch_size"]
        assert 0.2 <= float(values["head.margin"]) <= 0.6
        assert values["head.scale"] in ("16", "32")
        assert int(values["loader.batch_size"]) in range(1, 10)


def test_all_proposals_differ(tmp_path):
    proposed = search(tmp_path, Jobs(), sampler=RandomSampler)
    assert len(set(proposed)) == 6


@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["all keys", "conditional"])
@pytest.mark.parametrize("kill_at", [0, 4])
def test_continuing_after_a_kill_does_not_change_the_proposals(tmp_path, kill_at, space):
    whole = search(tmp_path / "whole", Jobs(), space, startup)
    killed = Jobs(kill_at)
    with pytest.raises(Killed):
        search(tmp_path / "killed", killed, space, startup)
    rest = search(tmp_path / "killed", Jobs(), space, startup)
    assert killed.proposed + rest == whole
    assert [t.state for t in study(tmp_path / "killed").trials] == [TrialState.COMPLETE] * 6


def test_all_jobs_of_an_interrupted_batch_run_again(tmp_path):
    """The launcher did not return, so their results are unknown."""
    with pytest.raises(Killed):
        search(tmp_path, killed := Jobs(3), at_once=2)
    rest = search(tmp_path, Jobs(), at_once=2)
    assert rest[0] == killed.proposed[2]
    assert len(rest) == 4


def test_more_trials_continue_the_study(tmp_path):
    first = search(tmp_path, Jobs(), trials=3)
    assert search(tmp_path, Jobs(), trials=3) == []
    assert not set(search(tmp_path, Jobs(), trials=5)) & set(first)
    assert len(study(tmp_path).trials) == 5


def test_only_temporary_failures_are_retried(tmp_path):
    def result(number, score):
        if number == 2:
            return TemporaryFailure(math.nan)
        return math.nan if number == 4 else score

    proposed = search(tmp_path, Jobs(result=result), trials=5)
    assert states(tmp_path) == ["COMPLETE", "RUNNING", "COMPLETE", "FAIL", "COMPLETE"]
    assert search(tmp_path, Jobs(), trials=5) == [proposed[1]]
    assert study(tmp_path).trials[3].state == TrialState.FAIL


def test_direction_min_minimizes_the_objective(tmp_path):
    search(tmp_path, Jobs(), direction="min", trials=3)
    best = study(tmp_path)
    assert best.best_value == min(trial.value for trial in best.trials)


OTHER = {
    "monitor": ({"monitor": "val_eer"}, "monitor (there val_top1, here val_eer)"),
    "direction": ({"direction": "min"}, "direction (there max, here min)"),
    "verb": ({"verb": "run"}, "verb (there train, here run)"),
    "summary": ({"objective": "lower"}, "objective (there mean, here lower)"),
    "objectives": ({"objectives": ["val_top1", "model_bytes"]}, "model_bytes"),
    "seeds": ({"space": [*SPACE, "seed=0,1,2"]}, "seeds (there seed=0"),
    "values": ({"space": [*SPACE[:2], "head.scale=8", SPACE[3]]}, "the values of head.scale"),
    "a fixed key": (
        {"space": [*SPACE, "data.num_classes=4"]},
        "data.num_classes (there the default, here 4)",
    ),
}


def test_a_search_with_other_settings_in_the_same_folder_is_an_error(tmp_path):
    space = [*SPACE, "seed=0,1"]
    search(tmp_path, Jobs(), space, trials=1)
    for more, difference in OTHER.values():
        given = {"space": space, **more}
        with pytest.raises(ConfigError, match="contains a search that differs in") as caught:
            search(tmp_path, Jobs(), **given)
        assert difference.replace("seed=0", "0, 1") in str(caught.value)
        assert "hydra.sweep.dir" in str(caught.value)
    same = ["threads=2", "launcher=joblib", "hydra.sweep.dir=x", *reversed(space)]
    assert search(tmp_path, Jobs(), same, trials=1) == []


def test_a_search_of_an_earlier_version_is_continued(tmp_path):
    search(tmp_path, Jobs(), trials=2)
    with contextlib.closing(sqlite3.connect(tmp_path / STORAGE)) as file, file:
        space = json.dumps(Proposals(Space.of(SPACE)).describe())
        file.execute("UPDATE study_user_attributes SET key = 'space', value_json = ?", [space])
    with pytest.raises(ConfigError, match="direction"):
        search(tmp_path, Jobs(), direction="min")
    assert len(search(tmp_path, Jobs(), trials=3)) == 1


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


WRONG = {
    "an interval of seeds": ([*SPACE, "seed=int(interval(0,9))"], {}, "seed is not searched"),
    "only seeds": (["seed=0,1"], {}, "only seed varies"),
    "an interval of one seed": (SPACE, {"objective": "lower"}, "needs at least 2 seeds"),
    "a wrong interval": (["head.margin=interval(0.4,0.2)"], {}, "cannot choose from head.margin"),
    "one objective": (SPACE, {"objectives": ["val_top1"]}, "contains one objective"),
    "an unknown objective": (SPACE, {"objectives": ["val_top1", "top1"]}, "top1 is not known"),
    "no direction": (SPACE, {"objectives": ["val_top1", "val_mine"]}, "val_mine is not known"),
    "another direction": (SPACE, {"objectives": ["val_top1", {"val_x": "up"}]}, "val_x is not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_search_is_an_error(tmp_path, case):
    space, settings, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, Jobs(), space, **settings)
    assert not (tmp_path / STORAGE).exists()


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


def test_a_log_interval_is_sampled_on_a_log_scale(tmp_path):
    space = ["head.margin=0.1", "optimizer.lr=tag(log,interval(1e-6,1.0))"]
    proposed = search(tmp_path, Jobs(), space=space, sampler=RandomSampler, trials=10)
    exponents = [math.log10(float(job[1].partition("=")[2])) for job in proposed]
    assert sum(exponent < -3 for exponent in exponents) > 2


def test_a_second_search_in_the_same_folder_is_refused(tmp_path):
    class Nested(Jobs):
        def __call__(self, batch, initial_job_idx):
            with pytest.raises(ResourceError, match="another search runs in this folder"):
                search(tmp_path, Jobs())
            return super().__call__(batch, initial_job_idx)

    assert len(search(tmp_path, Nested(), trials=2)) == 2
    assert len(search(tmp_path, Jobs(), trials=3)) == 1  # the folder is free again


@pytest.mark.parametrize("damage", [b"not a database" * 99, None], ids=["other", "truncated"])
def test_a_damaged_record_is_named(tmp_path, damage):
    search(tmp_path, Jobs(), trials=1)
    file = tmp_path / STORAGE
    file.write_bytes(file.read_bytes()[:6000] if damage is None else damage)
    with pytest.raises(ResourceError, match=r"if it is damaged, remove it") as caught:
        search(tmp_path, Jobs())
    assert STORAGE in str(caught.value)


def test_a_locked_record_is_named(tmp_path):
    search(tmp_path, Jobs(), trials=1)
    with contextlib.closing(sqlite3.connect(tmp_path / STORAGE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ResourceError, match="database is locked"):
            search(tmp_path, Jobs())

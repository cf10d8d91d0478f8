"""Search with Optuna: proposals, retries, and continuing after a kill."""

import contextlib
import math
import sqlite3
from types import SimpleNamespace

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from arcloop.errors import ConfigError, ResourceError
from arcloop.pipeline.sweeps.job import TemporaryFailure
from arcloop.pipeline.sweeps.search import STORAGE, Search

SPACE = ["name=x", "head.margin=interval(0.2,0.6)", "head.scale=16,32", "seed=int(interval(1,9))"]


class Killed(BaseException):
    pass


class Jobs:
    """A launcher whose jobs compute a formula; records the overrides of each job."""

    def __init__(self, kill_at=None, result=None):
        self.proposed, self.kill_at, self.result = [], kill_at, result

    def __call__(self, batch, initial_job_idx):
        returned = []
        for job in batch:
            if len(self.proposed) == self.kill_at:
                raise Killed
            self.proposed.append(job)
            values = dict(override.split("=") for override in job)
            score = -((float(values["head.margin"]) - 0.4) ** 2)
            value = score if self.result is None else self.result(len(self.proposed), score)
            returned.append(SimpleNamespace(return_value=value))
        return returned


def search(folder, jobs, trials=6, space=SPACE, sampler=TPESampler, at_once=1, direction="max"):
    Search(sampler, trials=trials, seed=0, direction=direction, at_once=at_once).run(
        space, str(folder), jobs
    )
    return jobs.proposed


def study(folder):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / STORAGE}")


def startup(seed):
    return TPESampler(seed=seed, n_startup_trials=3)


def test_values_are_in_the_given_space(tmp_path):
    for job in search(tmp_path, Jobs(), sampler=RandomSampler, trials=10):
        values = dict(override.split("=") for override in job)
        assert list(values) == ["name", "head.margin", "head.scale", "seed"]
        assert 0.2 <= float(values["head.margin"]) <= 0.6
        assert values["head.scale"] in ("16", "32")
        assert int(values["seed"]) in range(1, 10)


def test_all_proposals_differ(tmp_path):
    proposed = search(tmp_path, Jobs(), sampler=RandomSampler)
    assert len(set(proposed)) == 6


@pytest.mark.parametrize("kill_at", [0, 4])
def test_continuing_after_a_kill_does_not_change_the_proposals(tmp_path, kill_at):
    whole = search(tmp_path / "whole", Jobs(), sampler=startup)
    killed = Jobs(kill_at)
    with pytest.raises(Killed):
        search(tmp_path / "killed", killed, sampler=startup)
    rest = search(tmp_path / "killed", Jobs(), sampler=startup)
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
    states = [trial.state for trial in study(tmp_path).trials]
    assert states.count(TrialState.RUNNING) == states.count(TrialState.FAIL) == 1
    assert search(tmp_path, Jobs(), trials=5) == [proposed[1]]
    assert study(tmp_path).trials[3].state == TrialState.FAIL


def test_direction_min_minimizes_the_objective(tmp_path):
    search(tmp_path, Jobs(), direction="min", trials=3)
    best = study(tmp_path)
    assert best.best_value == min(trial.value for trial in best.trials)


def test_another_space_in_the_same_folder_is_an_error(tmp_path):
    search(tmp_path, Jobs(), trials=1)
    with pytest.raises(ConfigError, match="over a different space"):
        search(tmp_path, Jobs(), space=["head.margin=interval(0.2,0.7)"])


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

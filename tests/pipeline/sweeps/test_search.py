"""Search with Optuna: proposals, settings, retries, and continuing after a kill."""

import contextlib
import functools
import json
import math
import sqlite3

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from arcloop.errors import ConfigError, ResourceError
from arcloop.pipeline.sweeps.job import TemporaryFailure
from arcloop.pipeline.sweeps.proposals import Proposals
from arcloop.pipeline.sweeps.pruning import STORAGE
from arcloop.pipeline.sweeps.space import Space

from .searches import CONDITIONAL, SPACE, Jobs, Killed, search, startup, states, study


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


def test_a_locked_record_is_named(tmp_path, monkeypatch):
    search(tmp_path, Jobs(), trials=1)
    at_once = functools.partial(sqlite3.connect, timeout=0.01)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", at_once)
    with contextlib.closing(sqlite3.connect(tmp_path / STORAGE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ResourceError, match="database is locked"):
            search(tmp_path, Jobs())

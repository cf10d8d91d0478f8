"""Pruning: decisions compared with the rule of the paper, several processes, kills, and sweeps."""

import contextlib
import random
import sqlite3
import time
from pathlib import Path

import optuna
import pytest
from optuna.pruners import MedianPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState
from tests import forks
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.composition import compose_unchecked
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps import pruning
from arcloop.pipeline.sweeps.plan import plan
from arcloop.pipeline.sweeps.pruning import STORAGE, STUDY, JobTrial
from arcloop.pipeline.sweeps.record import RECORD, JobRecord

QUICK = [
    *SMALL,
    "callbacks=export_only",
    "callbacks.export=null",
    "logger=csv",
    "backbone.widths=[4]",
]
SWEEP = Path("runs/sweeps/synthetic")
ASHA = SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


@pytest.fixture
def study(tmp_path):
    """A study with running trials, and a function that returns the trial of a job."""
    found = optuna.create_study(
        study_name=STUDY, storage=f"sqlite:///{tmp_path / STORAGE}", direction="maximize"
    )

    def job(number, pruner=ASHA):
        return JobTrial(tmp_path / STORAGE, number, pruner)

    found.job = job
    return found


def asha(curves, factor=3):
    """The last epoch of each curve by successive halving; trials run one after another.

    After 1, 3, 9, ... epochs a trial goes on if its value is among the best `count // factor`
    values so far, at least one.
    """
    rungs, last = {}, []
    for curve in curves:
        for epoch, value in enumerate(curve, start=1):
            if epoch in (1, factor, factor**2):
                values = rungs.setdefault(epoch, [])
                values.append(value)
                if value not in sorted(values)[-max(1, len(values) // factor) :]:
                    break
        last.append(epoch)
    return last


def test_decisions_are_those_of_successive_halving(study):
    draw = random.Random(3)
    curves = [[draw.random() for _ in range(9)] for _ in range(9)]
    last = []
    for curve in curves:
        number = study.ask().number
        for epoch, value in enumerate(curve, start=1):
            if study.job(number).report(epoch, value, is_last=epoch == 9):
                break
        last.append(epoch)
        study.tell(number, state=TrialState.PRUNED if epoch < 9 else TrialState.COMPLETE,
                   values=curve[-1] if epoch == 9 else None)  # fmt: skip
    assert last == [min(epoch, 9) for epoch in asha(curves)]
    assert len(set(last)) > 2


def test_a_decision_is_kept_for_the_job_when_it_runs_again(study):
    """It was killed after the decision; the pruner alone would let it go on."""
    for value in (0.9, 0.1):
        decision = study.job(study.ask().number).report(1, value, is_last=False)
    assert (decision.epoch, decision.value) == (1, 0.1)
    assert not ASHA.prune(study, study.trials[1])
    again = study.job(1).decision()
    assert (again.epoch, again.value) == (1, 0.1)
    assert study.job(0).decision() is None


def test_the_first_seed_decides_and_the_others_follow(study):
    study.set_user_attr("settings", {"seeds": ["5", "7"]})
    for _ in range(2):
        study.ask()
    reported = [study.job(number).report(1, value, is_last=False)
                for number, value in ((0, 0.5), (1, 0.0), (3, 0.9), (2, 0.4))]  # fmt: skip
    assert [decision and decision.value for decision in reported] == [None, None, None, 0.4]
    assert [trial.intermediate_values for trial in study.trials] == [{1: 0.5}, {1: 0.4}]
    assert study.job(3).report(2, 0.9, is_last=False).value == 0.4
    assert study.job(1).report(2, 0.0, is_last=False) is None


def test_the_last_epoch_is_reported_but_not_pruned(study):
    for value in (0.9, 0.1):
        assert study.job(study.ask().number).report(1, value, is_last=True) is None
    assert study.trials[1].intermediate_values == {1: 0.1}


def test_a_median_pruner_compares_with_finished_trials(study):
    pruner = MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    for value in (0.2, 0.6):
        number = study.ask().number
        assert study.job(number, pruner).report(1, value, is_last=False) is None
        study.tell(number, value)
    assert study.job(study.ask().number, pruner).report(1, 0.41, is_last=False) is None
    assert study.job(study.ask().number, pruner).report(1, 0.39, is_last=False).epoch == 1


def report(storage, number, barrier):
    job = JobTrial(storage, number, SuccessiveHalvingPruner(min_resource=1))
    barrier.wait(60)
    for epoch in range(1, 16):
        job.report(epoch, epoch * 0.01 + job.number, is_last=False)


def test_processes_report_at_once_while_the_file_is_locked_for_a_moment(study, tmp_path):
    storage, barrier = tmp_path / STORAGE, forks.context().Barrier(4)
    outputs = [tmp_path / f"{number}.txt" for number in range(3)]
    processes = [
        forks.start(report, storage, study.ask().number, barrier, output=output)
        for output in outputs
    ]
    with contextlib.closing(sqlite3.connect(storage)) as other:
        other.execute("BEGIN EXCLUSIVE")
        barrier.wait(60)
        time.sleep(0.5)
        other.rollback()
    for process in processes:
        process.join(120)
    errors = [output.read_text() for output in outputs]
    assert [process.exitcode for process in processes] == [0, 0, 0], errors
    assert errors == ["", "", ""]
    best = study.trials[2]
    assert best.intermediate_values == {epoch: epoch * 0.01 + 2 for epoch in range(1, 16)}
    assert all(len(trial.intermediate_values) >= 1 for trial in study.trials)


@pytest.mark.parametrize("damage", ["locked", "removed"])
def test_training_goes_on_without_the_file(study, tmp_path, monkeypatch, capsys, damage):
    job = study.job(study.ask().number)
    monkeypatch.setattr(pruning, "_LOCK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with contextlib.closing(sqlite3.connect(tmp_path / STORAGE)) as other:
        if damage == "locked":
            other.execute("BEGIN EXCLUSIVE")
        else:
            (tmp_path / STORAGE).unlink()
        assert job.report(1, 0.5, is_last=False) is None
    assert "warning: the pruner cannot use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=random", "sweep/pruner=ahsa"], "no sweep/pruner=ahsa"),
        (["sweep=random", "sweep.pruner=asha"], "write sweep/pruner=asha"),
        (["sweep/pruner=asha"], "sweep/pruner=asha needs a sweep="),
        (["sweep=random", "sweep/pruner=asha", "sweep.pruner.reduction_factor=1"], ">= 2"),
        (["sweep=random", "sweep.pruner={_target_:optuna.samplers.RandomSampler}"], "not a pruner"),
    ],
)
def test_a_wrong_pruner_is_refused_before_any_job(words, message):
    with pytest.raises(ConfigError) as caught:
        plan("train", ["data=synthetic", "head.margin=0.2,0.4", *words])
    assert message in str(caught.value)


def test_any_pruner_of_optuna_can_be_given():
    node = "{_target_:optuna.pruners.PercentilePruner,percentile:25.0}"
    words = ["data=synthetic", "sweep=random", f"sweep.pruner={node}"]
    plan("train", [*words, "head.margin=0.2,0.4"])
    assert compose_unchecked(words).sweep.pruner.percentile == 25.0


def records():
    folders = [path.parent for path in sorted(SWEEP.glob(f"*/{RECORD}"))]
    return {path.name: JobRecord.read(path / RECORD) for path in folders if not path.is_symlink()}


def test_a_killed_sweep_continues_with_the_same_decisions(in_tmp, capsys):
    """The settings are 3 learning rates with 2 seeds; the sweep is killed at its third job."""
    words = ["sweep=grid", "sweep/pruner=asha", "optimizer.lr=0.1,1e-5,1e-4", "seed=0,1"]
    sweep = ["train", "-m", *QUICK, "trainer.max_epochs=3", *words]
    process = forks.start(main, sweep)
    third = SWEEP / "optimizer.lr-1e-05_seed-0"
    forks.wait_for((third / ".begun.json").exists, process)
    process.kill()
    process.join()
    assert main(sweep) == 0
    assert capsys.readouterr().err.count("pruned after epoch 1 with val_map_at_r") == 4
    found = records()
    assert [name for name in found if found[name].pruned is None] == [
        "optimizer.lr-0.1_seed-0", "optimizer.lr-0.1_seed-1",
    ]  # fmt: skip
    assert all(record.failure is None for record in found.values())
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{SWEEP / STORAGE}")
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert [len(t.intermediate_values) for t in study.trials] == asha(
        [list(trial.intermediate_values.values()) for trial in study.trials]
    )
    values = [found[f"optimizer.lr-0.1_seed-{seed}"].objective for seed in (0, 1)]
    assert study.trials[0].value == pytest.approx(sum(values) / 2)
    assert found[third.name].pruned.value == study.trials[1].intermediate_values[1]
    assert not artifacts.exists(third)
    assert not (SWEEP / "optimizer.lr-1e-05_seed-1/checkpoints").exists()  # it did not start
    before = (third / RECORD).read_bytes()
    assert main(sweep) == 0
    assert (third / RECORD).read_bytes() == before

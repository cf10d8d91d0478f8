"""Errors in a sweep are reported before its first job, in one message."""

import pytest

from arcloop.cli.main import main
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.plan import plan

WRONG = {
    "nothing to sweep": ([], ["no key has several values", "head.margin=0.2,0.3"]),
    "a misspelt key": (["head.margn=0.2,0.3"], ["no key head.margn", "did you mean head.margin"]),
    "a key that no choice has": (
        ["head=arcface,softmax", "head.margn=0.2,0.3"], ["no key head.margn"]),
    "a wrong value of a conditional key": (
        ["head=softmax,arcface", "head.margin=0.2,7"], ["head.margin=7"]),
    "lists of unequal length": (
        ["head.margin=0.2,0.3", "seed=0,1,2", "sweep.zip=[head.margin,seed]"],
        ["head.margin has 2, seed has 3", "same number"]),
    "a fixed key that varies with another": (
        ["head.margin=0.2,0.3", "sweep.zip=[head.margin,seed]"], ["seed is not a key with a list"]),
    "an objective that is not measured": (
        ["sweep=random", "head.margin=0.2,0.3", "callbacks=export_only",
         "sweep.objectives=[val_top1,index_bytes]"], ["index_bytes needs callbacks.build_index"]),
    "an interval in a grid": (
        ["sweep=grid", "head.margin=interval(0.2,0.3)"], ["head.margin is an interval"]),
    "several monitors": (["monitor=val_top1,val_map_at_r"], ["monitor cannot vary"]),
    "a misspelt choice": (["head=arcface,arcfac"], ["no head=arcfac", "did you mean arcface"]),
    "several errors": (
        ["head.margin=0.2,7", "loader.batch_size=10,0"], ["head.margin=7", "loader.batch_size=0"]),
    "an unknown metric": (["monitor=val_x,val_top1"], ["monitor=val_x: training logs only"]),
    "an unknown metric of a callback": (
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val_x", "seed=0,1"],
        ["callbacks.early_stopping.monitor=val_x: training logs only"]),
    "an interval without a search": (
        ["head.margin=interval(0.2,0.3)"], ["head.margin is an interval", "sweep=optuna"]),
    "the end of an interval": (
        ["sweep=random", "head.margin=interval(0.2,9.0)"], ["head.margin=9.0 must be less than"]),
    "one folder": (["run_dir=x", "head.margin=0.2,0.3"], ["run_dir=x", "hydra.sweep.dir"]),
    "fewer folders than jobs": (
        ["run_dir=x,y", "head.margin=0.2,0.3"], ["run_dir=x,y", "hydra.sweep.dir"]),
    "one folder, added": (["++run_dir=x", "seed=0,1"], ["++run_dir=x", "hydra.sweep.dir"]),
    "no Slurm": (["launcher=slurm", "seed=1,2"], ["launcher=slurm needs Slurm", "launcher=joblib"]),
    "no Ray": (
        ["launcher=ray", "seed=1,2"], ["launcher=ray needs a plug-in of Hydra", "cloudpickle<3"]),
    "a search of seeds": (
        ["sweep=optuna", "head.margin=0.2,0.3", "seed=int(interval(0,9))"],
        ["seed is not searched"]),
    "no trials": (["sweep=optuna", "sweep.trials=0", "seed=1,2"], ["sweep.trials=0 must be"]),
    "a misspelt search": (["sweep=optun", "seed=1,2"], ["no sweep=optun", "did you mean optuna"]),
    "a syntax error": (["head.margin=interval(0.2"], ["cannot read the override"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_sweep_is_one_error_and_starts_no_job(in_tmp, capsys, case):
    arguments, messages = WRONG[case]
    assert main(["train", "-m", "data=synthetic", *arguments]) == 2
    error = capsys.readouterr().err
    for message in messages:
        assert message in error
    assert "remedy:" in error
    assert "jobs in" not in error
    assert not list(in_tmp.rglob("job.json"))
    assert not (in_tmp / "stores").exists()


def test_a_verb_without_an_objective_cannot_be_searched(in_tmp):
    with pytest.raises(ConfigError, match="has no objective"):
        plan("prepare", ["data=synthetic", "sweep=optuna", "data.noise=interval(0.1,0.9)"])


def test_several_values_without_m_are_explained(in_tmp, capsys):
    assert main(["train", "head.margin=0.2,0.3"]) == 2
    error = capsys.readouterr().err
    assert "head.margin=0.2,0.3 has several values" in error
    assert "-m runs one job for each" in error


def test_a_folder_with_jobs_of_another_monitor_is_refused(sweep):
    folder = sweep.job({"head.margin": 0.2}, 0.9)
    (folder / "config.yaml").write_text("monitor: val_top1\nmonitor_mode: max\n")
    given = ["data=synthetic", "head.margin=0.3,0.4", f"hydra.sweep.dir={sweep.path}"]
    with pytest.raises(ConfigError, match="have val_top1 max, so that they cannot be ranked"):
        plan("train", given)
    assert plan("train", [*given, "overwrite=true"]).folder == sweep.path
    assert plan("train", [*given, "monitor=val_top1"]).folder == sweep.path


def test_plan_has_the_swept_keys_and_the_folder():
    planned = plan(
        "train",
        ["name=mine", "head=glob(arc*)", "+trainer.max_time=null,1", "seed=range(3)", "force=true"],
    )
    assert planned.swept == ("head", "trainer.max_time", "seed")
    assert str(planned.folder) == "runs/sweeps/mine"
    assert planned.gpus == ()
    assert planned.extra == ("hydra.sweeper._target_=hydra_plugins.arcloop_search.GridSweeper",)

"""Verbs on a finished run use its recorded settings, however the command line names the run."""

import shutil
from pathlib import Path

import pytest
from tests.conftest import SMALL, arcloop_in

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.paths import name_run, quote_paths
from arcloop.pipeline.sweeps.plan import plan
from arcloop.pipeline.sweeps.record import run_of_job
from arcloop.serving.deploy import parse_arguments

RECORDED = ["index=hnsw", "calibration.far=0.05", "callbacks.evaluate=null"]
ODD = "sweeps/head.margin=0.2,[a] b"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    arguments = [*SMALL, *RECORDED, "name=foo", "evaluate.gate.min_top1=0.2"]
    folder = arcloop_in(tmp_path_factory.mktemp("trained"), "train", *arguments)
    shutil.copytree(folder / "runs/foo", folder / ODD)
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(scope="module")
def two_trained(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "w"
    shutil.copytree(trained, folder)
    bar = ["name=bar", "seed=1", "evaluate.gate.min_top1=0.3"]
    return arcloop_in(folder, "train", *SMALL, *RECORDED, *bar)


@pytest.fixture
def two_runs(two_trained, tmp_path, monkeypatch):
    shutil.copytree(two_trained, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


NOTATIONS = {
    "literal": (["run_dir=runs/foo"], "runs/foo"),
    "path": (["runs/foo"], "runs/foo"),
    "odd path": ([ODD], ODD),
    "name": (["name=foo"], "runs/foo"),
    "interpolation": (["run_dir=runs/${name}", "name=foo"], "runs/foo"),
    "quotes": (["run_dir='sweeps/head.margin=0.2,[a] b'"], ODD),
    "unquoted": ([f"run_dir={ODD}"], ODD),
    "escapes": ([r"run_dir=sweeps/head.margin\=0.2\,\[a\]\ b"], ODD),
}


@pytest.mark.parametrize("notation", NOTATIONS)
def test_the_settings_of_the_run_are_kept(runs, notation):
    arguments, folder = NOTATIONS[notation]
    before = artifacts.read(runs / folder / "index", "index").sha256
    assert main(["index", *arguments, "calibration.max_queries=30"]) == 0
    index = artifacts.load(runs / folder / "index", "index")
    assert index.sha256 != before
    assert index.config["index"]["factory"] == "HNSW32,Flat"
    calibration = index.config["calibration"]
    assert (calibration["far"], calibration["max_queries"]) == (0.05, 30)


def gates(*folders):
    kind = "evaluation"
    return [artifacts.load(f / kind, kind).config["evaluate"]["gate"]["min_top1"] for f in folders]


def test_each_job_of_a_sweep_over_runs_keeps_the_settings_of_its_run(two_runs):
    assert main(["evaluate", "-m", "name=foo,bar", "evaluate.num_projected=0"]) == 0
    assert gates(Path("runs/foo"), Path("runs/bar")) == [0.2, 0.3]


def test_several_jobs_of_a_run_are_in_folders_of_their_own(two_runs):
    """The gate of half of the jobs does not pass."""
    more = ["evaluate.gate.max_eer=0,1", "evaluate.num_projected=0"]
    assert main(["evaluate", "-m", "run_dir='runs/foo',runs/bar", *more]) == 3
    jobs = {job: run_of_job(job).name for job in two_runs.glob("runs/sweeps/foo-evaluate/*/")}
    assert sorted(jobs.values()) == ["bar", "bar", "foo", "foo"]
    assert gates(*jobs) == [{"foo": 0.2, "bar": 0.3}[name] for name in jobs.values()]
    assert not (two_runs / "runs/foo/job.json").exists()


def test_a_sweep_over_the_data_of_an_evaluation_keeps_the_settings_of_the_run(runs):
    planned = plan("evaluate", ["run_dir=runs/foo", "data.query=50,60"])
    assert "index=hnsw" in planned.extra
    assert "data=synthetic" in planned.extra
    assert planned.swept == ("data.query",)


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "name=none"],
        ["index", "run_dir='runs/none'"],
        ["evaluate", "-m", "run_dir=runs/foo,runs/none"],
        ["evaluate", "-m", "name=foo,none"],
        ["deploy", "run_dir='runs/none'"],
        ["deploy", "name=none"],
        ["versions", "rollback", "run_dir=runs/none"],
    ],
    ids=" ".join,
)
def test_a_run_that_does_not_exist_is_refused_before_work_starts(runs, capsys, arguments):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "there is no run here" in error
    assert "where: runs/none" in error
    assert not (runs / "runs/foo/evaluation").exists()
    assert not (runs / "model_store").exists()


@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_run_is_deployed_to_its_own_store(runs, notation):
    arguments, folder = NOTATIONS[notation]
    parsed = parse_arguments(quote_paths(name_run(arguments)))
    assert str(parsed.run_dir) == folder
    assert (parsed.settings.name, parsed.settings.model_store) == ("foo", "model_store/foo")

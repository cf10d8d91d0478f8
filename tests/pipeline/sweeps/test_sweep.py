"""Sweeps from the command line: killed and continued, in several processes, with failing jobs."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import torch
from benchmarks import results
from hypothesis import given
from hypothesis import strategies as st
from tests import forks
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.artifacts import JOB_LOG
from arcloop.cli.main import main
from arcloop.config.composition import parse_overrides
from arcloop.pipeline.sweeps.record import RECORD, JobRecord, folder_name

QUICK = [*SMALL, "callbacks=export_only", "logger=csv"]
SWEEP = Path("runs/sweeps/synthetic")


def finished():
    folders = (path.parent for path in SWEEP.glob("*/manifest.json"))
    return sorted(folder for folder in folders if not folder.is_symlink())


def started():
    folders = {path.parents[1] for path in SWEEP.glob("*/checkpoints/last.ckpt")}
    return sorted(folders - set(finished()))


def record(folder):
    return JobRecord.read(folder / RECORD)


def log(folder):
    return (folder / JOB_LOG).read_text()


def states(folder):
    """Return path -> modification time of the files of runs."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name in ("model.pt", "metrics.csv"))
    return {path: path.stat().st_mtime_ns for path in files}


def test_a_killed_sweep_continues_without_repeating_finished_jobs(in_tmp, capsys):
    arguments = ["train", "-m", *QUICK, "trainer.max_epochs=15", "head.margin=0.2,0.4"]
    process = forks.start(main, arguments)
    forks.wait_for(lambda: finished() and started(), process)
    process.kill()
    process.join()
    (first,), (second,) = finished(), started()
    before = states(first)
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("finished before") == 1
    assert f"resuming from {second}/checkpoints/last.ckpt" in log(second)
    assert states(first) == before
    assert finished() == sorted([first, second])
    for folder in finished():
        objective = artifacts.load(folder, "run").info["objective"]
        assert record(folder).objective == objective


MEASURED = ["val_map_at_r", "val_top1", "index_bytes", "model_bytes", "parameters"]


def test_several_objectives_are_measured(in_tmp, capsys):
    """Also a conditional key, and two jobs of each trial."""
    chosen = ["sweep=grid", "embedder.embedding_dim=8,32", "head=softmax,arcface",
              "head.margin=choice(0.2)", "sweep.zip=[embedder.embedding_dim,head]",
              f"sweep.objectives=[{','.join(MEASURED)}]"]  # fmt: skip
    quick = [
        *SMALL,
        "trainer.max_epochs=1",
        "callbacks.evaluate=null",
        "callbacks.tensorboard=null",
    ]
    assert main(["train", "-m", *quick, *chosen]) == 0
    printed = capsys.readouterr().err
    names = ["embedder.embedding_dim-8_head-softmax",
             "embedder.embedding_dim-32_head-arcface_head.margin-0.2"]  # fmt: skip
    assert {folder.name for folder in finished()} == set(names)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{SWEEP}/optuna.db")
    for name, trial in zip(names, study.trials, strict=True):
        folder = SWEEP / name
        *_, row = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        model = torch.jit.load(folder / "model.pt")
        assert trial.values == [
            pytest.approx(float(row["val_map_at_r"])), pytest.approx(float(row["val_top1"])),
            artifacts.read(folder / "index", "index").info["bytes"],
            os.path.getsize(folder / "model.pt"),
            sum(weights.numel() for weights in model.parameters()),
        ]  # fmt: skip
        values = [value for _, value in record(folder).objectives.values()]
        assert values == trial.values
    for trial in study.best_trials:
        assert f"trial {trial.number}: val_map_at_r {trial.values[0]:.6g}, val_top1 " in printed


def test_launchers_train_equal_models(in_tmp, monkeypatch, capfd):
    """A failed job is recorded and not repeated; the others give the same weights as in series.

    The sweep is started in series, continued in other processes by a command that would use another
    number of threads, and repeated in series, and by submitit in another folder.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    values = ["optimizer.lr=0.1,1e30", "loader.num_workers=1"]
    arguments = ["train", "-m", *QUICK, "launcher=joblib", *values]
    serial = [argument for argument in arguments if not argument.startswith("launcher")]
    assert main([*serial, "+callbacks.last.stop_at_step=4"]) == 143
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(arguments) == 1
    output = capfd.readouterr().err
    assert len(re.findall(r"^job \d of 2  optimizer.lr=.*$", output, re.MULTILINE)) == 2
    logs = log(SWEEP / "optimizer.lr-0.1"), log(SWEEP / "optimizer.lr-1e+30")
    assert [text.count("deterministic, 2 threads") for text in logs] == [2, 1]  # of torch
    assert "1 of 2 jobs failed; the first error: training diverged" in output
    assert "Traceback" not in output
    assert [folder.name for folder in finished()] == ["optimizer.lr-0.1"]
    recorded = json.loads((SWEEP / "optimizer.lr-1e+30/job.json").read_text())
    assert "training diverged" in recorded["failure"]["what"]
    assert recorded["failure"]["retry"] is False
    assert recorded["swept"] == {"optimizer.lr": "1e+30"}
    assert len(recorded["config_sha256"]) == 64
    assert recorded["ended"] >= recorded["started"]
    assert not list(SWEEP.glob(".results-*"))
    # A later sweep must not use processes that have the current directory of this one.
    children = [" ".join(process.cmdline()) for process in psutil.Process().children()]
    assert not [command for command in children if "LokyProcess" in command]
    run = SWEEP / "optimizer.lr-0.1"
    weights = (run / "model.pt").read_bytes()

    assert main(serial) == 1
    assert "  not repeated" in capfd.readouterr().err
    later = log(SWEEP / "optimizer.lr-1e+30").removeprefix(logs[1])
    assert "skipped: it failed before" in later
    assert "train: " not in later
    before = states(run)
    assert main([*serial, "overwrite=true", "resume=false"]) == 1
    assert all(time != before[path] for path, time in states(run).items())
    assert (run / "model.pt").read_bytes() == weights
    assert artifacts.load(run, "run").code["threads"] == "2"

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    one = ["optimizer.lr=choice(0.1)", "loader.num_workers=1", "hydra.sweep.dir=other"]
    assert main(["train", "-m", *QUICK, *one, "hydra/launcher=submitit_local"]) == 0
    assert Path("other/optimizer.lr-0.1/model.pt").read_bytes() == weights


def test_a_job_that_failed_temporarily_runs_again(in_tmp, capsys):
    Path("blocked").symlink_to("/proc/blocked")  # the second job cannot create its folder of stores
    arguments = ["train", "-m", *QUICK, "stores_dir=stores,blocked/stores"]
    assert main(arguments) == 1
    assert "the same command runs 1 of them again" in capsys.readouterr().err
    (first,) = finished()
    before = states(first)
    assert record(SWEEP / folder_name({"stores_dir": "blocked/stores"})).failure.retry
    Path("blocked").unlink()
    assert main(arguments) == 0
    assert len(finished()) == 2
    assert record(SWEEP / folder_name({"stores_dir": "blocked/stores"})).failure is None
    assert states(first) == before


def test_a_finished_job_of_another_config_keeps_its_record(in_tmp, capsys):
    sweep = ["train", "-m", *QUICK, "seed=choice(0)"]
    assert main([*sweep, "trainer.max_epochs=1"]) == 0
    before = record(SWEEP / "seed-0")
    assert main(sweep) == 2
    assert "contains a run of another config" in capsys.readouterr().err
    assert record(SWEEP / "seed-0") == before
    assert main([*sweep, "overwrite=true"]) == 0
    assert record(SWEEP / "seed-0").config_sha256 != before.config_sha256


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=250)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_folders_of_jobs_differ_and_need_no_quotes(values):
    names = [folder_name({"data.root": value, "seed": "0"}) for value in values]
    assert len(set(names)) == 2
    for name in names:
        assert shlex.quote(name) == name
        assert len(name) <= 200
        (override,) = parse_overrides([f"run_dir=runs/sweeps/x/{name}"])
        assert override.value() == f"runs/sweeps/x/{name}"


def test_a_sweep_of_an_earlier_version_is_continued_in_its_folders(in_tmp):
    values = ["head.margin=0.2,0.4", "seed=choice(0)"]
    sweep = ["train", "-m", *QUICK, "trainer.max_epochs=1", *values]
    assert main(sweep) == 0
    old = SWEEP / "head.margin=0.2,seed=0"
    (SWEEP / "head.margin-0.2_seed-0").rename(old)
    before = states(SWEEP)
    assert main(sweep) == 0
    assert states(SWEEP) == before
    assert finished() == [SWEEP / "head.margin-0.4_seed-0", old]


def test_a_process_of_a_sweep_ends_when_its_command_is_killed():
    child = (
        "import os, time; from arcloop.pipeline.sweeps.job import _exit_when_parent_ends;"
        "_exit_when_parent_ends(os.getppid());"
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = Path(f"/proc/{pid}").exists()
    if left:
        os.kill(pid, signal.SIGKILL)
    process.stdout.close()
    assert not left


def test_make_results_writes_a_table_with_a_command_for_each_row(in_tmp, monkeypatch):
    """What `make results` runs, on tiny data."""
    root = Path(__file__).parents[3]
    made = subprocess.run(
        ["make", "-n", "results", "SETS=tiny", "HEADS=arcface,arcface_sharded", "SEEDS=0,1"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (command,) = (line for line in made.stdout.splitlines() if "-m benchmarks.results" in line)
    arguments = command.split("-m benchmarks.results ")[1]
    monkeypatch.setitem(results.SETS, "tiny", [*SMALL, "trainer.max_epochs=1"])
    results.main(shlex.split(arguments))
    page = Path("docs/results/tiny.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "±" in line]
    assert len(rows) == 2
    again = [line for line in page.splitlines() if line.startswith("arcloop train -m")]
    assert sum("'head=choice(arcface)' seed=0,1 " in line for line in again) == 1
    before = states(in_tmp / "runs/results/tiny")
    assert main(shlex.split(again[0].partition("#")[0])[1:]) == 0
    assert states(in_tmp / "runs/results/tiny") == before
    assert os.path.getsize("runs/results/tiny/leaderboard.html") > 10_000

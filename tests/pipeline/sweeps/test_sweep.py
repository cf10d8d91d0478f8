"""Sweeps as a user types them: killed and continued, in several processes, with jobs that fail."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.pipeline.sweeps import record

QUICK = [*SMALL, "callbacks=export_only", "logger=csv"]
SWEEP = Path("runs/sweeps/synthetic")


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    assert condition()


def finished():
    return sorted(path.parent for path in SWEEP.glob("*/manifest.json"))


def under_way():
    begun = {path.parents[1] for path in SWEEP.glob("*/checkpoints/last.ckpt")}
    return sorted(begun - set(finished()))


def states(folder):
    """What is written of a run, and when it was."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name in ("model.pt", "metrics.csv"))
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    "chosen",
    [
        ["head.margin=0.2,0.4"],
        ["sweep=optuna", "sweep.trials=2", "head.margin=interval(0.2,0.6)"],
    ],
    ids=["grid", "optuna"],
)
def test_a_sweep_killed_in_the_middle_goes_on_and_repeats_nothing(in_tmp, capsys, chosen):
    arguments = ["train", "-m", *QUICK, "trainer.max_epochs=15", *chosen]
    process = subprocess.Popen(
        [sys.executable, "-m", "arcloop", *arguments], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: finished() and under_way(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,), (second,) = finished(), under_way()
    before = states(first)
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert f"resuming from {second}/checkpoints/last.ckpt" in said
    assert states(first) == before
    assert finished() == sorted([first, second])
    for folder in finished():
        objective = artifacts.load(folder, "run").info["objective"]
        assert record.read(folder).objective == objective
    if "sweep=optuna" in chosen:
        study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{SWEEP}/optuna.db")
        assert sorted(trial.value for trial in study.trials) == sorted(
            record.read(folder).objective for folder in finished()
        )
        assert main(arguments) == 0
        assert "job 0" not in capsys.readouterr().err


def test_jobs_in_other_processes_and_one_that_fails(in_tmp, capfd):
    arguments = ["train", "-m", *QUICK, "launcher=joblib", "optimizer.lr=0.1,1e30"]
    assert main(arguments) == 1
    said = capfd.readouterr().err
    assert "1 of 2 jobs failed; the first error: training diverged" in said
    assert "Traceback" not in said
    assert [folder.name for folder in finished()] == ["optimizer.lr=0.1"]
    told = json.loads((SWEEP / "optimizer.lr=1e+30/job.json").read_text())
    assert "training diverged" in told["failure"]["what"]
    assert told["failure"]["retry"] is False
    assert told["swept"] == {"optimizer.lr": "1e+30"}
    assert len(told["config_sha256"]) == 64
    assert told["ended"] >= told["started"]
    assert not list(SWEEP.glob(".outcomes/*"))

    serial = [argument for argument in arguments if not argument.startswith("launcher")]
    assert main(serial) == 1
    said = capfd.readouterr().err
    assert "skipped: it failed before" in said
    assert "epoch 1/2" not in said
    assert main([*serial, "overwrite=true"]) == 1
    assert "epoch 1/2" in capfd.readouterr().err


def test_what_the_machine_kept_from_ending_is_tried_again(in_tmp, capsys):
    Path("blocked").touch()  # a file, where the second job's store would go
    arguments = ["train", "-m", *QUICK, "stores_dir=stores,blocked/stores"]
    assert main(arguments) == 1
    assert "the same command runs 1 of them again" in capsys.readouterr().err
    (first,) = finished()
    before = states(first)
    assert record.read(SWEEP / "stores_dir=blocked-stores").failure.retry
    Path("blocked").unlink()
    assert main(arguments) == 0
    assert len(finished()) == 2
    assert record.read(SWEEP / "stores_dir=blocked-stores").failure is None
    assert states(first) == before


def test_the_result_of_another_config_keeps_its_record(in_tmp, capsys):
    sweep = ["train", "-m", *QUICK, "seed=choice(0)"]
    assert main([*sweep, "trainer.max_epochs=1"]) == 0
    before = record.read(SWEEP / "seed=0")
    assert main(sweep) == 2
    assert "contains a run of another config" in capsys.readouterr().err
    assert record.read(SWEEP / "seed=0") == before
    assert main([*sweep, "overwrite=true"]) == 0
    assert record.read(SWEEP / "seed=0").config_sha256 != before.config_sha256


def test_a_gate_that_does_not_pass_in_any_job(work):
    assert main(["evaluate", "-m", "run_dir=runs/synthetic", "evaluate.gate.max_eer=0.01,1"]) == 3
    assert not (work / "runs/synthetic/job.json").exists()


def test_a_process_of_a_sweep_ends_with_the_command_that_started_it():
    child = (
        "import os, time; from arcloop.pipeline.sweeps.job import _exit_with;"
        "_exit_with(os.getppid());"
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


def test_make_results_writes_a_table_with_a_command_for_each_row(in_tmp):
    """The target's own commands, on tiny data."""
    root = Path(__file__).parents[3]
    given = {"HEADS": "arcface,arcface_sharded", "SEEDS": "0,1", "RESULTS": " ".join(SMALL),
             "RESULTS_PAGE": "page.md"}  # fmt: skip
    made = subprocess.run(
        ["make", "-n", "results", *(f"{k}={v}" for k, v in given.items())],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    commands = [line for line in made.stdout.splitlines() if line.startswith(".venv/bin/arcloop")]
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    page = Path("page.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "±" in line]
    assert len(rows) == 2
    again = [line for line in page.splitlines() if line.startswith("arcloop train -m")]
    assert sum("'head=choice(arcface)' seed=0,1 " in line for line in again) == 1
    before = states(in_tmp / "runs/results")
    assert main(shlex.split(again[0].partition("#")[0])[1:]) == 0
    assert states(in_tmp / "runs/results") == before
    assert os.path.getsize("runs/results/leaderboard.html") > 10_000

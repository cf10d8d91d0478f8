"""What follows a sweep: the best job, commands on it, and the removal of the other models."""

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import SMALL, arcloop_in

from arcloop import artifacts
from arcloop.artifacts import JOB_LOG
from arcloop.artifacts.atomic import try_lock
from arcloop.cli.main import main
from arcloop.pipeline.leaderboard.best import write_best
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.serving.deploy import parse_arguments

SWEEP = Path("runs/sweeps/synthetic")
COMMAND = [
    "train", "-m", *SMALL, "trainer.max_epochs=1", "callbacks.last.keep=false", "logger=csv",
]  # fmt: skip


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """A folder in which a sweep of two jobs ended."""
    return arcloop_in(tmp_path_factory.mktemp("swept"), *COMMAND, "head.margin=0.2,0.5")


@pytest.fixture
def after(swept, tmp_path, monkeypatch):
    """A copy of the folder of the sweep."""
    shutil.copytree(swept, tmp_path / "after", symlinks=True)
    monkeypatch.chdir(tmp_path / "after")
    return sorted(path for path in SWEEP.iterdir() if path.name.startswith("head.margin"))


def read_best():
    return json.loads((SWEEP / "best.json").read_text())


def test_a_sweep_ends_with_its_leaderboard_and_its_best_job(after):
    objectives = {f.name: artifacts.load(f, "run").info["objective"] for f in after}
    assert objectives.keys() == {"head.margin-0.2", "head.margin-0.5"}
    for job in after:
        artifacts.load(job / "evaluation", "evaluation")
        assert 0 <= objectives[job.name] <= 1
    best = max(objectives, key=objectives.get)
    assert (SWEEP / "best").readlink() == Path(best)
    found = read_best()
    assert found["folder"] == best
    assert found["objective"] == found["mean"] == objectives[best]
    assert found["values"] == {"head.margin": best.rpartition("-")[2]}
    assert (found["monitor"], found["mode"], found["seeds"]) == ("val_map_at_r", "max", 1)
    for name in ("leaderboard.html", "leaderboard.csv", "leaderboard-jobs.csv"):
        assert (SWEEP / name).is_file()
    # With keep=false, a finished run has one checkpoint.
    assert [path.name for path in (after[0] / "checkpoints").iterdir()] == ["best.ckpt"]


def test_commands_on_the_best_job_record_its_folder(after, capsys, tmp_path):
    from PIL import Image

    best = SWEEP / read_best()["folder"]
    assert main(["evaluate", f"run_dir={SWEEP}/best", "evaluate.vote_k=1"]) == 0
    assert str(best) in capsys.readouterr().out
    made = artifacts.read(best / "evaluation", "evaluation")
    assert made.config["evaluate"]["vote_k"] == 1
    image = tmp_path / "image.png"
    Image.new("L", (16, 16)).save(image)
    assert main(["query", str(image), "--run", f"{SWEEP}/best"]) == 0
    assert main(["lineage", f"{SWEEP}/best"]) == 0
    assert f"run {best}" in capsys.readouterr().out
    assert parse_arguments([f"run_dir={SWEEP}/best"]).run_dir == best


def test_clean_removes_the_models_of_the_other_jobs_only(after, capsys):
    (best,) = (f for f in after if f.name == read_best()["folder"])
    (other,) = set(after) - {best}
    board = (SWEEP / "leaderboard.csv").read_bytes()
    before = set(SWEEP.rglob("*"))
    assert main(["clean", str(SWEEP)]) == 0
    output = capsys.readouterr().out
    assert f"MiB: {other}\n" in output
    assert str(best) not in output
    assert "add --yes to remove" in output
    assert set(SWEEP.rglob("*")) == before

    assert main(["clean", str(SWEEP), "--keep", "top=2", "--yes"]) == 0
    assert "freed 0.0 MiB in 0 of 2 jobs" in capsys.readouterr().out
    assert main(["clean", str(SWEEP), "--keep", "best", "--yes"]) == 0
    removed = {path.relative_to(other) for path in before if other in path.parents}
    removed -= {path.relative_to(other) for path in other.rglob("*")}
    assert {path.parts[0] for path in removed} == {
        "model.pt", "golden.npz", "checkpoints", "gallery", "index",
    }  # fmt: skip
    artifacts.load(best, "run", trust=False)
    artifacts.load(best / "index", "index", trust=False)

    assert main(["leaderboard", str(SWEEP)]) == 0
    assert (SWEEP / "leaderboard.csv").read_bytes() == board
    assert main(["evaluate", f"run_dir={other}"]) == 1
    error = capsys.readouterr().err
    assert "`arcloop clean` removed" in error
    assert "arcloop diff" in error
    assert main([*COMMAND, "head.margin=0.2,0.5"]) == 0
    log = (other / JOB_LOG).read_text()
    assert "skipped: it finished, and `arcloop clean` removed its model" in log
    assert log.count("epoch 1/1") == 1
    assert not (other / "model.pt").exists()
    # Training it again makes it complete; without keep=false, last.ckpt stays, in the same file.
    margin = f"head.margin=choice({other.name.rpartition('-')[2]})"
    again = [word for word in COMMAND if not word.startswith("callbacks")]
    assert main([*again, margin, "callbacks=export_only", "overwrite=true"]) == 0
    artifacts.load(other, "run")
    checkpoints = {path.name for path in (other / "checkpoints").iterdir()}
    assert checkpoints == {"best.ckpt", "last.ckpt"}
    assert (other / "checkpoints/best.ckpt").samefile(other / "checkpoints/last.ckpt")
    assert not artifacts.is_cleaned(other)


def test_clean_refuses_while_a_job_runs(sweep, capsys):
    for margin in (0.2, 0.3):
        folder = sweep.job({"head.margin": margin}, margin)
        (folder / "model.pt").write_bytes(b"model")
    lock = try_lock(sweep.path / "head.margin-0.3")
    assert main(["clean", str(sweep.path), "--yes"]) == 1
    assert "a job of this sweep is running" in capsys.readouterr().err
    assert (sweep.path / "head.margin-0.2/model.pt").exists()
    lock.release()
    assert main(["clean", str(sweep.path), "--keep", "worst"]) == 2
    assert "use --keep best or --keep top=3" in capsys.readouterr().err
    assert main(["clean", str(sweep.path), "--yes"]) == 0
    assert not (sweep.path / "head.margin-0.2/model.pt").exists()
    assert (sweep.path / "head.margin-0.3/model.pt").exists()
    assert not [path.name for path in sweep.path.iterdir() if path.name.endswith(".lock")]


def test_clean_without_a_best_job_removes_nothing(sweep, capsys):
    folder = sweep.job({"head.margin": 0.2}, None, failure="diverged")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").write_bytes(b"x")
    assert main(["clean", str(sweep.path), "--yes"]) == 2
    assert "no job of this folder has a value" in capsys.readouterr().err
    assert (folder / "checkpoints/last.ckpt").exists()


def test_the_link_follows_the_best_job(sweep):
    first = sweep.job({"head.margin": 0.2, "seed": 0}, 0.8)
    write_best(Ranking.of(sweep.path))
    link = sweep.path / "best"
    assert link.readlink() == Path(first.name)
    sweep.job({"head.margin": 0.3, "seed": 0}, 0.9)
    second = sweep.job({"head.margin": 0.3, "seed": 1}, 0.95)
    sweep.job({"head.margin": 0.2, "seed": 1}, 0.99)  # the best job, but not of the best setting
    sweep.job({"head.margin": 0.4, "seed": 0}, None, failure="x")
    write_best(Ranking.of(sweep.path))
    assert link.readlink() == Path(second.name)
    assert len(Ranking.of(sweep.path).jobs) == 5
    link.unlink()
    link.mkdir()  # a folder of a user
    write_best(Ranking.of(sweep.path))
    assert not link.is_symlink()


def test_a_sweep_without_a_finished_job_has_no_best_job(sweep):
    folder = sweep.job({"head.margin": 0.2}, 0.8)
    write_best(Ranking.of(sweep.path))
    shutil.rmtree(folder)
    sweep.job({"head.margin": 0.3}, None, failure="x")
    write_best(Ranking.of(sweep.path))
    assert not (sweep.path / "best").is_symlink()
    assert not (sweep.path / "best.json").exists()

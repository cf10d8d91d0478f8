"""Old runs are removed from the volume; what a newer run or a deployment needs is kept."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from arcloop import artifacts
from arcloop.artifacts.writer import write_manifest
from arcloop.errors import ArtifactError, ConfigError
from arcloop.kfp.options import Options, split_options
from arcloop.kfp.pod import retention, storage
from arcloop.kfp.pod.retention import remove_old_runs
from arcloop.kfp.submission import main as submit

DAY_S = 86400


class Volume:
    """A volume with runs that were last used a number of days ago."""

    def __init__(self, path):
        self.path = path

    def add(self, run, task, kind, *, days, parents=None, size=100):
        folder = self.path / f"pipelines/{run}/{task}/salt/{kind}_out"
        folder.mkdir(parents=True)
        (folder / "data.bin").write_bytes(os.urandom(size))
        write_manifest(folder, kind, config={}, parents=parents or {}, info={}, exclude=())
        self.use(run, days)
        return artifacts.read(folder, kind)

    def use(self, run, days):
        marker = self.path / "pipelines" / run / storage.USED
        marker.touch()
        os.utime(marker, (time.time() - days * DAY_S,) * 2)

    def deploy(self, name, parents, *, live="v1"):
        store = self.path / "model_store" / name
        store.mkdir(parents=True)
        (store / "live.json").write_text(json.dumps({"name": name, "live": live, "previous": None}))
        with zipfile.ZipFile(store / f"{name}-v1.mar", "w") as archive:
            archive.writestr("manifest.json", json.dumps({"parents": parents}))
        return store

    def runs(self):
        return {path.name for path in (self.path / "pipelines").iterdir()}


@pytest.fixture
def volume(tmp_path):
    made = Volume(tmp_path)
    made.add("recent", "prepare", "store", days=2)
    made.add("old", "prepare", "store", days=40, size=5000)
    return made


def clean(volume, keep_days=30, *, dry_run=False):
    return remove_old_runs(volume.path, keep_days, dry_run=dry_run)


def test_a_run_that_was_not_used_is_removed(volume, capsys):
    freed = clean(volume)
    assert volume.runs() == {"recent"}
    output = capsys.readouterr().out
    assert f"removed old: {freed:,} bytes" in output
    assert "kept recent: used on 20" in output
    assert freed > 5000


def test_a_dry_run_removes_nothing(volume, capsys):
    (volume.path / "pipelines/.removed-before").mkdir()
    freed = clean(volume, dry_run=True)
    assert volume.runs() == {"recent", "old", ".removed-before"}
    assert f"would remove old: {freed:,} bytes" in capsys.readouterr().out
    assert clean(volume) == freed
    assert volume.runs() == {"recent"}


def test_the_newest_finished_run_and_what_it_was_made_from_stay(tmp_path, capsys):
    volume = Volume(tmp_path)
    store = volume.add("data", "prepare", "store", days=90)
    run = volume.add("model", "train", "run", days=80, parents={"store": store.sha256})
    before = volume.add("before", "evaluate", "evaluation", days=60)
    weights = run.file_sha256("data.bin")  # other artifacts refer to a model by its file
    parents = {"model": weights, "versus": before.sha256}
    volume.add("newest", "evaluate", "evaluation", days=50, parents=parents)
    volume.add("unrelated", "prepare", "store", days=50)
    clean(volume)
    assert volume.runs() == {"data", "model", "newest"}
    assert "kept data: used by model" in capsys.readouterr().out


def test_the_runs_of_a_live_deployment_stay(volume, capsys):
    deployed = volume.add("deployed", "index", "index", days=400)
    volume.deploy("things", {"index": deployed.sha256})
    volume.deploy("nothing-live", {}, live=None)
    clean(volume)
    assert volume.runs() == {"recent", "deployed"}
    output = capsys.readouterr().out
    assert "kept deployed: used by the live deployment in model_store/things" in output


def test_a_damaged_model_store_stops_the_removal(volume):
    store = volume.deploy("things", {})
    (store / "things-v1.mar").unlink()
    with pytest.raises(ArtifactError, match="the live version of a model store cannot be read"):
        clean(volume)
    assert volume.runs() == {"recent", "old"}


def test_a_run_that_a_step_begins_to_use_is_kept(volume, monkeypatch, capsys):
    """A step reads the run after the decision and before the rename."""
    size = retention._size

    def use_and_measure(folder):
        volume.use("old", 0)
        return size(folder)

    monkeypatch.setattr(retention, "_size", use_and_measure)
    assert clean(volume) == 0
    assert volume.runs() == {"recent", "old"}
    assert "kept old: a step uses it again" in capsys.readouterr().out


@pytest.mark.parametrize("days", [0, 40])
def test_a_removal_that_was_killed_is_completed(volume, days):
    """A process is killed when it has renamed a run; the run was used just before, or not."""
    volume.use("old", 40)
    code = f"""
import os, signal, sys
from pathlib import Path
from arcloop.kfp.pod import retention
retention._complete_removal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
retention.remove_old_runs(Path({str(volume.path)!r}), 30, dry_run=False)
"""
    ended = subprocess.run([sys.executable, "-c", code])
    assert ended.returncode == -signal.SIGKILL
    assert volume.runs() == {"recent", ".removed-old"}
    volume.use(".removed-old", days)
    clean(volume)
    assert volume.runs() == ({"recent", "old"} if days == 0 else {"recent"})


def test_files_that_cannot_be_removed_are_reported(volume, monkeypatch, capsys):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", f"{folder}/file")

    monkeypatch.setattr(retention.shutil, "rmtree", refuse)
    assert clean(volume) == 0
    assert "file cannot be removed (Permission denied)" in capsys.readouterr().out
    monkeypatch.undo()
    clean(volume)
    assert volume.runs() == {"recent"}


def test_a_step_marks_the_runs_that_it_uses(volume, monkeypatch):
    monkeypatch.setenv(storage.VOLUME, str(volume.path))
    monkeypatch.setattr(storage, "_TOUCH_EVERY_S", 0.01)
    run = volume.path / "pipelines/old"
    ended = time.monotonic() + 60
    with storage.in_use([run / "prepare/salt/store_out", volume.path.parent / "elsewhere"]):
        for _ in range(2):  # at the beginning, and again
            volume.use("old", 40)
            while retention._last_used(run) < time.time() - DAY_S and time.monotonic() < ended:
                time.sleep(0.01)
    clean(volume)
    assert volume.runs() == {"recent", "old"}


def test_the_options_of_the_command():
    assert split_options(["mode=clean"])[0] == Options("clean", keep_days=30, dry_run=False)
    read, _ = split_options(["mode=clean", "keep_days=7", "dry_run=true"])
    assert read == Options("clean", keep_days=7, dry_run=True)


@pytest.fixture
def arguments(recorder, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["cluster=onprem", f"cluster.host={recorder.url}", f"cluster.image={image}"]


def test_the_command_submits_a_pipeline_of_its_own(arguments, recorder):
    assert submit([*arguments, "mode=clean", "keep_days=7", "dry_run=true"]) == 0
    (run,) = recorder.runs
    assert run["display_name"] == "arcloop-clean"
    (version,) = recorder.versions
    defined = version["spec"].root.input_definitions.parameters
    assert defined["keep_days"].default_value.number_value == 7
    assert defined["dry_run"].default_value.bool_value is True
    (task,) = version["spec"].root.dag.tasks.values()
    assert not task.caching_options.enable_cache


def test_a_schedule_of_the_removal_does_not_replace_that_of_the_training(arguments, recorder):
    assert submit([*arguments, "data=synthetic", "schedule=0 0 * * 2"]) == 0
    assert submit([*arguments, "mode=clean", "schedule=0 3 * * 0"]) == 0
    names = {run["display_name"] for run in recorder.recurring}
    assert names == {"synthetic", "arcloop-clean"}


def test_the_removal_needs_a_volume(arguments, recorder, capsys):
    assert submit([*arguments, "mode=clean", "cluster.storage=artifacts"]) == 2
    assert "mode=clean removes runs from a volume" in capsys.readouterr().err
    assert submit(["mode=clean"]) == 2
    assert recorder.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mode=clean", "keep_days=0.5"], "keep_days=0.5 must be a number of days"),
        (["mode=clean", "keep_days=soon"], "keep_days=soon must be"),
        (["mode=clean", "keep_days=nan"], "keep_days=nan must be"),
        (["mode=clean", "dry_run=1"], "dry_run=1 must be true or false"),
        (["dry_run=true", "keep_days=3"], "dry_run, keep_days needs mode=clean"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        split_options(options)

"""The model store: versions, concurrent deploys, and a deploy that is killed at every step."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from arcloop.errors import ArtifactError, ConfigError
from arcloop.serving.model_store import ModelStore

SERVING = Path(__file__).parents[2] / "serving"


def version(day):
    return f"202601{day:02d}T000000Z-0123456789ab"


def put(store, day, keep=3):
    """Deploy a text file in place of an archive."""
    with store.locked() as staging:
        archive = staging / f"{store.name}-{version(day)}.mar"
        archive.write_text(version(day))
        added = store.add(archive)
        live = store.make_live(added.version)
        store.write_config("config.properties", f"load_models={live.path.name}\n")
        store.prune(keep)


def states(store):
    return {v.version[6:8]: v.state for v in store.versions()}


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "store", "m")


def test_older_versions_move_to_the_backup(store):
    for day in range(1, 6):
        put(store, day)
    assert states(store) == {
        "01": "backup", "02": "backup", "03": "kept", "04": "previous", "05": "live"
    }  # fmt: skip
    assert [v.path.read_text() for v in store.versions()] == [version(d) for d in range(1, 6)]


def test_live_and_previous_are_never_pruned(store):
    for day in range(1, 4):
        put(store, day)
    with store.locked():
        store.make_live(version(1))
        store.prune(2)
    assert states(store) == {"01": "live", "02": "backup", "03": "previous"}
    for day in range(4, 6):
        put(store, day, keep=2)
    assert states(store) == {
        "01": "backup", "02": "backup", "03": "backup", "04": "previous", "05": "live"
    }  # fmt: skip


def test_a_version_in_the_backup_can_become_live(store):
    for day in range(1, 5):
        put(store, day, keep=2)
    with store.locked():
        live = store.make_live(version(1))
    assert live.path == store.path / f"m-{version(1)}.mar"
    assert live.path.read_text() == version(1)
    assert store.live() == live


def test_making_the_live_version_live_again_changes_nothing(store):
    put(store, 1)
    put(store, 2)
    with store.locked():
        store.make_live(version(2))
    assert states(store) == {"01": "previous", "02": "live"}


def test_an_unknown_version_is_an_error(store):
    assert store.live() is None
    with pytest.raises(ArtifactError, match="there is no version"):
        store.make_live(version(1))


def test_a_store_of_another_model_is_rejected(store):
    put(store, 1)
    with pytest.raises(ConfigError, match="belongs to 'm', not 'other'"), \
            ModelStore(store.path, "other").locked():  # fmt: skip
        pass


def test_a_damaged_live_json_is_an_error(store):
    put(store, 1)
    (store.path / "live.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"live\.json is damaged"):
        store.live()


def test_other_files_are_left_unchanged(store):
    put(store, 1)
    (store.path / "mine.mar").write_text("x")
    (store.path / "m-notes.txt").write_text("x")
    put(store, 2)
    assert set(states(store)) == {"01", "02"}
    assert (store.path / "mine.mar").read_text() == "x"


def process(store, body, **pipes):
    """Start a process that runs `body` with a ModelStore of the same folder."""
    code = "\n".join([
        "from pathlib import Path; from arcloop.serving.model_store import ModelStore",
        f"store = ModelStore(Path({str(store.path)!r}), 'm')",
        inspect.getsource(version), inspect.getsource(put), body,
    ])  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, **pipes)


def test_concurrent_deploys(store):
    processes = [process(store, f"put(store, {day})") for day in range(1, 7)]
    assert [one.wait(60) for one in processes] == [0] * 6
    found = store.versions()
    assert sorted(v.path.read_text() for v in found) == [version(d) for d in range(1, 7)]
    states_now = [v.state for v in found]
    assert states_now.count("live") == states_now.count("previous") == 1
    assert 3 <= len(found) - states_now.count("backup") <= 4
    assert_servable(store)


# Each deploy is a fork of one process.
KILLED = """
import os, signal, sys
CHANGING = {"open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "sendfile",
            "__exit__"}
changes = 0
def hook(frame, event, called):
    global changes
    if event == "c_call" and called.__name__ in CHANGING and not isinstance(called.__self__, str):
        changes += 1
        if changes > after:
            os.kill(os.getpid(), signal.SIGKILL)
for line in sys.stdin:
    after, pid = int(line), os.fork()
    if pid == 0:
        sys.setprofile(hook)
        put(store, 4, keep=2)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_killed_at_any_change_the_store_can_be_served(store):
    """Repeat the deploy, and kill each repetition one file system call later than the last one."""
    for day in range(1, 4):
        put(store, day, keep=2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with process(store, KILLED, **pipes) as deploys:
        for after in range(100):
            print(after, file=deploys.stdin, flush=True)
            code = int(deploys.stdout.readline())
            assert_servable(store)
            if code == 0:
                break
            assert code == -9
        else:
            pytest.fail("the deploy did not finish")
        deploys.stdin.close()
    assert after > 20  # it was killed at many points
    assert states(store) == {"01": "backup", "02": "backup", "03": "previous", "04": "live"}
    assert not list(store.path.glob(".staging/*"))


def assert_servable(store):
    """All archives are complete, and live.json and the server config name existing archives."""
    record = json.loads((store.path / "live.json").read_text())
    for name in (record["live"], record["previous"]):
        assert (store.path / f"m-{name}.mar").read_text() == name
    for found in store.versions():
        assert found.path.read_text() == found.version
    config = (store.path / "config.properties").read_text()
    file = config.strip().removeprefix("load_models=")
    assert (store.path / file).read_text() == store.find(file[2:-4]).version

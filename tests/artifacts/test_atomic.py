import os
import subprocess
import sys
import time

import pytest

from arcloop.artifacts import atomic
from arcloop.artifacts.atomic import (
    file_lock,
    is_abandoned,
    process_tag,
    remove_abandoned,
    temporary_sibling,
    try_lock,
)
from arcloop.artifacts.writer import write_artifact
from arcloop.errors import ResourceError

COUNTING = """
from pathlib import Path
from arcloop.artifacts.atomic import file_lock
for _ in range(200):
    with file_lock(Path("count")):
        Path("count").write_text(str(int(Path("count").read_text()) + 1))
"""
LOCKING = """
import sys, time
from pathlib import Path
from arcloop.artifacts.atomic import try_lock
lock = try_lock(Path("x"))
print("locked", flush=True)
time.sleep(float(sys.argv[1]))
"""


def test_one_process_at_a_time_has_the_lock(tmp_path):
    (tmp_path / "count").write_text("0")
    counters = [subprocess.Popen([sys.executable, "-c", COUNTING], cwd=tmp_path) for _ in range(3)]
    assert [counter.wait(timeout=60) for counter in counters] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "600"
    assert [p.name for p in tmp_path.iterdir()] == ["count"]


@pytest.fixture
def locking(tmp_path):
    """Another process that has the lock of x."""
    command = [sys.executable, "-c", LOCKING, "60"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_try_lock_does_not_wait_and_a_kill_releases_the_lock(locking, tmp_path):
    assert try_lock(tmp_path / "x") is None
    locking.kill()
    locking.wait()
    with try_lock(tmp_path / "x"):
        pass


def test_waiting_for_a_lock_is_reported_once(locking, tmp_path):
    waits = []

    def end_the_other_process():
        waits.append(1)
        locking.kill()

    with file_lock(tmp_path / "x", end_the_other_process):
        assert waits == [1]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write"), file_lock(tmp_path / "file" / "x"):
        pass


def temporary(folder, tag, age_s=0.0):
    path = folder / f".s.tmp-{tag}"
    path.mkdir()
    (path / "part").touch()
    for file in (path / "part", path):
        os.utime(file, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HERE = process_tag().rpartition("-")[0]
DAY = 24 * 3600


@pytest.mark.parametrize(
    ("tag", "age_s", "expected"),
    [
        (f"{HERE}-DEAD", 0, True),
        (f"{HERE}-{os.getppid()}", 2 * DAY, False),
        ("0123456789ab-DEAD", 0, False),
        ("0123456789ab-DEAD", 2 * DAY, True),
        ("other.host-7", 0, False),
        ("123", 0, False),
        ("123", 2 * DAY, True),
        ("no number", 0, False),
    ],
)
def test_only_folders_of_ended_processes_are_removed(tmp_path, dead_pid, tag, age_s, expected):
    path = temporary(tmp_path, tag.replace("DEAD", str(dead_pid)), age_s)
    assert is_abandoned(path) == expected
    with write_artifact(tmp_path / "s", "store", config={}):
        pass
    assert path.exists() != expected


def test_a_recent_file_keeps_the_folder_of_another_host(tmp_path):
    path = temporary(tmp_path, "0123456789ab-7", 2 * DAY)
    os.utime(path / "part")
    assert not is_abandoned(path)


def test_the_tag_differs_between_boots_and_needs_no_proc(monkeypatch, tmp_path):
    tags = {process_tag()}
    for files in ([tmp_path / "boot_id", tmp_path / "ns"], [tmp_path / "none"] * 2):
        (tmp_path / "boot_id").write_text("another boot")
        if not (tmp_path / "ns").is_symlink():
            (tmp_path / "ns").symlink_to("pid:[1]")
        monkeypatch.setattr(atomic, "_HOST_ID_FILES", tuple(files))
        atomic._host_id.cache_clear()
        tags.add(process_tag())
    atomic._host_id.cache_clear()
    assert len(tags) == 3


def test_replacing_a_folder_without_an_exchange_in_one_step(tmp_path, monkeypatch):
    """As on macOS, or on a network file system."""
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr(atomic, "_exchange", lambda *paths: False)
    atomic.replace_folder(tmp_path / "new", tmp_path / "target")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "target", "target/new",
    ]  # fmt: skip


@pytest.mark.parametrize("missing", [True, False])
def test_a_system_without_renameat2(tmp_path, monkeypatch, missing):
    class Library:
        def __init__(self, *args, **kwargs):
            if not missing:
                self.renameat2 = lambda *args: -1

    monkeypatch.setattr(atomic.ctypes, "CDLL", Library)
    monkeypatch.setattr(atomic.ctypes, "get_errno", lambda: atomic.errno.EINVAL)
    assert atomic._exchange(tmp_path / "a", tmp_path / "b") is False


def test_a_file_system_that_cannot_sync_a_folder(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(atomic.errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    (tmp_path / "new").mkdir()
    atomic.replace_folder(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target").is_dir()


@pytest.mark.parametrize("name", ["run", "[b]cat", "[!c]"])
def test_abandoned_folders_of_one_artifact_are_removed(tmp_path, name):
    """A name that looks like a pattern matches itself only; "[b]cat" is not "bcat"."""
    own = temporary_sibling(tmp_path / name)
    others = [temporary_sibling(tmp_path / other) for other in ("bcat", "b", "r")]
    for folder in (own, *others):
        folder.mkdir()
    remove_abandoned(tmp_path / name)
    assert not own.exists()
    assert all(other.exists() for other in others)

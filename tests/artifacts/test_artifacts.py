import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from arcloop import artifacts
from arcloop.artifacts import atomic
from arcloop.artifacts.writer import write_artifact, write_manifest
from arcloop.errors import ArtifactError, ConfigError, ResourceError


def write(path, content=b"abc", *, config=None, parents=None):
    with write_artifact(path, "store", config=config or {}, parents=parents) as writer:
        (writer.path / "part").mkdir()
        (writer.path / "part" / "a.bin").write_bytes(content)
        writer.info["rows"] = 3
    return artifacts.load(path, "store")


def test_manifest_holds_hash_and_size_of_every_file(tmp_path):
    artifact = write(tmp_path / "s", b"hello", config={"x": 1}, parents={"source": "f00"})
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    expected = {"sha256": hashlib.sha256(b"hello").hexdigest(), "size": 5}
    assert manifest["files"] == {"part/a.bin": expected}
    assert manifest["config"] == {"x": 1}
    assert artifact.parents == {"source": "f00"}
    assert artifact.info == {"rows": 3}
    assert (
        artifact.sha256 == hashlib.sha256((tmp_path / "s/manifest.json").read_bytes()).hexdigest()
    )
    assert set(manifest["code"]["packages"]) >= {"torch", "numpy", "arcloop"}


def test_same_content_gives_the_same_manifest(tmp_path):
    assert write(tmp_path / "a").sha256 == write(tmp_path / "b").sha256
    assert write(tmp_path / "c", b"other").sha256 != write(tmp_path / "d").sha256


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_the_file_named(tmp_path, damage):
    write(tmp_path / "s", b"x" * 100)
    file = tmp_path / "s/part/a.bin"
    if damage == "flip":
        file.write_bytes(b"x" * 50 + b"y" + b"x" * 49)
    elif damage == "truncate":
        file.write_bytes(b"x" * 99)
    else:
        file.unlink()
    with pytest.raises(ArtifactError, match=r"a\.bin"):
        artifacts.load(tmp_path / "s", "store")


def test_folder_without_manifest_is_not_there(tmp_path):
    write(tmp_path / "s")
    (tmp_path / "s/manifest.json").unlink()
    assert not artifacts.exists(tmp_path / "s")
    with pytest.raises(ArtifactError, match="no store here"):
        artifacts.load(tmp_path / "s", "store")


def test_other_kind_is_refused(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(ArtifactError, match="'store', not 'index'"):
        artifacts.load(tmp_path / "s", "index")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"schema": 1, "kind": "store"}']
)
def test_a_damaged_manifest_is_reported(tmp_path, content):
    write(tmp_path / "s")
    (tmp_path / "s/manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="manifest"):
        artifacts.load(tmp_path / "s", "store")


def test_failure_leaves_nothing_and_keeps_what_was_there(tmp_path):
    before = write(tmp_path / "s", b"old")

    def fail() -> None:
        with write_artifact(tmp_path / "s", "store", config={}) as writer:
            (writer.path / "b").write_bytes(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert artifacts.load(tmp_path / "s", "store").sha256 == before.sha256
    assert os.listdir(tmp_path) == ["s"]


def test_replacing_swaps_the_whole_folder(tmp_path):
    write(tmp_path / "s", b"old")
    write(tmp_path / "s", b"new")
    assert (tmp_path / "s/part/a.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["s"]


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="did not write"):
        write(tmp_path / "s")
    assert (tmp_path / "s/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("target", ["missing", "empty", "another artifact"])
def test_a_link_is_followed_and_stays(tmp_path, target):
    (tmp_path / "s").symlink_to("elsewhere")
    if target != "missing":
        (tmp_path / "elsewhere").mkdir()
    if target == "another artifact":
        write(tmp_path / "elsewhere", b"old")
    write(tmp_path / "s", b"new")
    assert (tmp_path / "s").is_symlink()
    assert (tmp_path / "elsewhere/part/a.bin").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "s"]


def test_a_loop_of_links_or_a_file_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    for name in ("loop", "file"):
        with pytest.raises(ConfigError, match="not a folder"):
            write(tmp_path / name)
    assert (tmp_path / "file").read_text() == "x"


def test_a_mount_point_is_refused_before_the_work(small_disk, tmp_path):
    (small_disk / "lost+found").mkdir()
    (tmp_path / "link").symlink_to(small_disk)
    for path in (small_disk, tmp_path / "link"):
        with pytest.raises(ConfigError, match="mount point"):
            write(path)
    write(small_disk / "s")
    assert sorted(os.listdir(small_disk)) == ["lost+found", "s"]


def test_an_empty_folder_of_the_same_disk_that_is_mounted_is_refused(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    mounts = ["mount", "--bind", tmp_path / "source", tmp_path / "target"]
    if subprocess.run(mounts, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        with pytest.raises(ConfigError, match="mount point"):
            write(tmp_path / "target")
    finally:
        subprocess.run(["umount", tmp_path / "target"], check=True)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_folders_of_the_operating_system_are_no_part_of_an_artifact(tmp_path):
    for name in ("lost+found", "__MACOSX"):
        (tmp_path / "s" / name).mkdir(parents=True)
    write(tmp_path / "s")
    (tmp_path / "s/lost+found").mkdir()
    (tmp_path / "s/lost+found/#1").write_text("x")
    written = write_manifest(tmp_path / "s", "store", config={}, parents={})
    assert sorted(written.files) == ["part/a.bin"]


def test_killed_writer_leaves_no_artifact_and_its_temporary_folder_is_removed(tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from arcloop.artifacts.writer import write_artifact, write_manifest
        with write_artifact(Path({str(tmp_path)!r}) / "s", "store", config={{}}) as writer:
            (writer.path / "half").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not artifacts.exists(tmp_path / "s")
    assert len(list(tmp_path.glob(".s.tmp-*"))) == 1
    write(tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"]


def test_nested_artifact_is_its_own(tmp_path):
    run = tmp_path / "run"
    write(run / "gallery")
    (run / "model.pt").write_bytes(b"weights")
    artifact = write_manifest(run, "run", config={}, parents={})
    assert list(artifact.files) == ["model.pt"]


def test_read_only_target_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        write(tmp_path / "file" / "s")


def test_load_rehashes_only_what_changed(tmp_path, monkeypatch):
    write(tmp_path / "s")  # loads once
    hashed = []
    real = atomic.sha256_file
    monkeypatch.setattr(artifacts, "sha256_file", lambda p, **k: hashed.append(p) or real(p, **k))
    artifacts.load(tmp_path / "s", "store")
    assert hashed == []
    os.utime(tmp_path / "s/part/a.bin")
    artifacts.load(tmp_path / "s", "store")
    assert [p.name for p in hashed] == ["a.bin"]


def test_load_if_current_compares_settings_and_parents(tmp_path):
    write(tmp_path / "s", config={"x": 1}, parents={"p": "1"})
    assert artifacts.load_if_current(tmp_path / "s", "store", {"x": 1}, {"p": "1"})
    assert artifacts.load_if_current(tmp_path / "s", "store", {"x": 2}, {"p": "1"}) is None
    assert artifacts.load_if_current(tmp_path / "s", "store", {"x": 1}, {"p": "2"}) is None
    assert artifacts.load_if_current(tmp_path / "none", "store", {"x": 1}, {"p": "1"}) is None


def test_find_by_hash(tmp_path):
    write(tmp_path / "a", b"1")
    wanted = write(tmp_path / "b", b"2")
    assert artifacts.find_by_hash(tmp_path, "store", wanted.sha256) == tmp_path / "b"
    assert artifacts.find_by_hash(tmp_path, "store", "0" * 64) is None


REPLACING = """
import sys
from pathlib import Path
from arcloop.artifacts.atomic import replace_folder
from arcloop.artifacts.atomic import file_lock
for number in range(200):
    new = Path(f".{sys.argv[1]}")
    new.mkdir()
    (new / "whole").touch()
    replace_folder(new, Path("target"))
"""


def test_a_folder_is_never_missing_while_two_processes_replace_it(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/whole").touch()
    writers = [
        subprocess.Popen([sys.executable, "-c", REPLACING, name], cwd=tmp_path) for name in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        assert (tmp_path / "target").is_dir()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["target"]

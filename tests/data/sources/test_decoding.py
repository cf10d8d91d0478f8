"""Decoding in several processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.data.conftest import folder_source, write_pictures

from arcloop.data import Store, prepare
from arcloop.data.sources import decoding
from arcloop.data.sources.decoding import FileBlock, decode_blocks
from arcloop.data.store.source_files import hash_content
from arcloop.errors import DataError, ResourceError
from arcloop.runtime.images import DEFAULT_CONVERSION, decode

SHAPE = (6, 4, 3)


@dataclass
class Mark:
    """Encodes images; each call leaves a file with the id of its process."""

    folder: Path
    number: int
    signal: int = 0
    fails: bool = False

    def __call__(self, images):
        (self.folder / f"{os.getpid()}-{self.number}").touch()
        if self.signal:
            os.kill(os.getpid(), self.signal)
        if self.fails:
            raise DataError("it failed", where="here", remedy="correct it")
        time.sleep(0.02 * (self.number % 3 == 0))  # the others overtake it
        return images


def blocks(folder, count, **changed):
    for number in range(count):
        mark = Mark(folder, number, **changed)
        yield FileBlock(
            split="train", root="nowhere", paths=[b"%d.png" % number], labels=[number],
            image_shape=SHAPE, conversion=DEFAULT_CONVERSION, encode=mark,
        )  # fmt: skip


def processes(folder):
    return {int(path.name.partition("-")[0]) for path in folder.iterdir()}


def test_one_worker_is_this_process(tmp_path):
    assert len(list(decode_blocks(blocks(tmp_path, 3), 1))) == 3
    assert processes(tmp_path) == {os.getpid()}


def test_every_block_is_decoded_once_in_other_processes_and_few_are_in_flight(tmp_path):
    taken = []

    def tasks():
        for block in blocks(tmp_path, 60):
            taken.append(block)
            yield block

    results = decode_blocks(tasks(), 2)
    done = [next(results)]
    assert len(taken) <= 8
    done += results
    assert [block.unreadable for block in done] == [
        [(f"nowhere/{number}.png", "No such file or directory")] for number in range(60)
    ]
    assert len(list(tmp_path.iterdir())) == 60
    assert os.getpid() not in processes(tmp_path)
    assert 1 <= len(processes(tmp_path)) <= 2


def test_an_error_in_a_worker_is_raised_with_all_its_parts(tmp_path):
    with pytest.raises(DataError, match="it failed") as caught:
        list(decode_blocks(blocks(tmp_path, 2, fails=True), 2))
    assert (caught.value.where, caught.value.remedy) == ("here", "correct it")


def test_results_that_are_not_used_leave_no_worker(tmp_path):
    results = decode_blocks(blocks(tmp_path, 20), 2)
    next(results)
    results.close()
    assert not any(psutil.pid_exists(pid) for pid in processes(tmp_path))


def test_a_killed_worker_is_one_clear_error(tmp_path):
    with pytest.raises(ResourceError, match="a process that decodes images died") as caught:
        list(decode_blocks(blocks(tmp_path, 9, signal=signal.SIGKILL), 2))
    assert "free memory" in caught.value.remedy


def test_a_worker_that_cannot_be_started(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(decoding.ProcessPoolExecutor, "submit", refuse)
    with pytest.raises(ResourceError, match=r"cannot be started: .*temporarily unavailable"):
        list(decode_blocks(blocks(tmp_path, 9), 2))


def test_a_daemonic_process_decodes_by_itself(tmp_path, monkeypatch):
    """multiprocessing does not allow daemonic processes to have children."""
    monkeypatch.setitem(decoding.multiprocessing.current_process()._config, "daemon", True)
    list(decode_blocks(blocks(tmp_path, 3), 2))
    assert processes(tmp_path) == {os.getpid()}


def test_rows_labels_and_versions_of_a_block_with_an_unreadable_file(tmp_path):
    write_pictures(tmp_path / "a", 2)
    (tmp_path / "marks").mkdir()
    paths = [b"a/000.png", b"a/none.png", b"a/001.png"]
    mark = Mark(tmp_path / "marks", 1)
    done = FileBlock(
        split="val", root=str(tmp_path), paths=paths, labels=[3, 4, 5], image_shape=SHAPE,
        conversion=DEFAULT_CONVERSION, encode=mark,
    ).decode()  # fmt: skip
    stats = [(tmp_path / os.fsdecode(path)).stat() for path in paths[::2]]
    assert done.files.tolist() == [
        (
            path,
            stat.st_size,
            stat.st_mtime_ns,
            hash_content((tmp_path / path.decode()).read_bytes()),
        )
        for path, stat in zip(paths[::2], stats, strict=True)
    ]
    assert (done.split, done.labels.tolist()) == ("val", [3, 5])
    for image, path in zip(done.images, paths[::2], strict=True):
        assert (image == decode(tmp_path / os.fsdecode(path), height=6, width=4, channels=3)).all()
    assert done.unreadable == [(str(tmp_path / "a/none.png"), "No such file or directory")]


def test_the_number_of_processes_does_not_change_the_store(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("arcloop.data.sources.picture_listing._BLOCK_ROWS", 5)
    one = prepare(folder_source(pictures), tmp_path / "one", workers=1)
    two = prepare(folder_source(pictures), tmp_path / "two", workers=2)
    assert one.files == two.files


def test_script_without_main_guard_runs_once(tmp_path, pictures, monkeypatch):
    for number in range(60):
        write_pictures(pictures / f"c{number}", 10, seed=number)
    source = folder_source(pictures)
    (tmp_path / "work.py").write_text(
        "from pathlib import Path\n"
        "from arcloop.data import ImageFolderSource, prepare\n"
        "print('run')\n"
        f"prepare({source!r}, Path('stores/store'), workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "work.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    monkeypatch.chdir(tmp_path)
    here = prepare(source, tmp_path / "here", workers=1)
    assert Store.open(tmp_path / "stores" / "store").artifact.files == here.files


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_preparation_leaves_no_store_and_no_process(tmp_path, pictures, sent):
    for number in range(60):
        write_pictures(pictures / f"c{number}", 8, seed=number)
    (tmp_path / "work.py").write_text(
        "from pathlib import Path\n"
        "from arcloop.data import ImageFolderSource, prepare\n"
        "if __name__ == '__main__':\n"
        f"    source = {folder_source(pictures, image_size=1024)!r}\n"
        "    prepare(source, Path('stores/store'), workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "work.py"], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not is_decoding(tmp_path / "stores"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # two workers, the fork server and the resource tracker
    if sent == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, sent)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert sent != signal.SIGINT or errors.count(b"Traceback") == 1  # the script's own
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    left = [path.name for path in (tmp_path / "stores").glob("*")]
    assert "store" not in left
    assert sent != signal.SIGINT or left == []


def is_decoding(stores):
    """Return whether images were written to the unfinished store."""
    return any(file.stat().st_size > 4096 for file in stores.glob(".*/train/images-*"))

"""Errors of the operating system have a path and a remedy."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.errors import ConfigError, as_user_error, report_errors

LONG = "a" * 300


def in_a_loop(folder):
    (folder / "loop").symlink_to("loop")
    (folder / "loop" / "x").read_bytes()


def below_a_file(folder):
    (folder / "file").touch()
    (folder / "file" / "x").read_bytes()


FAULTS = {
    "long name": (lambda folder: (folder / LONG).touch(), "choose a shorter name", 2),
    "loop of links": (in_a_loop, "remove the symbolic link", 2),
    "below a file": (below_a_file, "choose another path", 2),
    "a folder": (lambda folder: folder.read_bytes(), "choose another path", 2),
    "missing": (lambda folder: (folder / "x").read_bytes(), "check the path", 1),
}


@pytest.mark.parametrize("case", FAULTS)
def test_every_error_of_the_system_names_path_and_remedy(tmp_path, capsys, case):
    cause, remedy, code = FAULTS[case]
    assert report_errors(lambda: cause(tmp_path)) == code
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert remedy in error


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_no_number_of_an_error_is_left_out(number):
    error = as_user_error(OSError(number, os.strerror(number), "/some/path"))
    assert error is not None
    assert os.strerror(number) in str(error)
    assert "/some/path" in str(error)
    assert error.remedy


def test_an_error_of_another_origin_is_not_converted():
    assert as_user_error(OSError("without a number")) is None
    assert as_user_error(ValueError()) is None


def test_errors_keep_their_parts_across_processes():
    error = pickle.loads(pickle.dumps(ConfigError("a", where="b", remedy="c")))
    assert (type(error), error.what, error.where, error.remedy) == (ConfigError, "a", "b", "c")


@pytest.mark.parametrize(
    ("verb", "overrides"),
    [
        ("run", [f"name={LONG}"]),
        ("prepare", [f"store_dir={LONG}"]),
        ("train", [f"run_dir={LONG}"]),
        ("train", ["run_dir=file"]),
        ("train", ["run_dir=file/run"]),
        ("prepare", ["store_dir=file/store"]),
        ("prepare", ["stores_dir=file"]),
        ("prepare", ["store_dir=loop"]),
        ("prepare", ["data=image_folder", f"data.root=/{LONG}"]),
        ("prepare", ["data=csv", f"data.file=/{LONG}"]),
    ],
)
def test_impossible_paths_are_errors_before_any_work(in_tmp, capsys, verb, overrides):
    Path("file").touch()
    Path("loop").symlink_to("loop")
    data = [] if overrides[0].startswith("data=") else SMALL
    assert main([verb, *data, *overrides]) == 2
    error = capsys.readouterr().err
    assert "remedy:" in error
    assert {path.name for path in in_tmp.iterdir()} == {"file", "loop"}


def test_a_limit_on_the_size_of_files_is_named(in_tmp):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "from arcloop.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", *SMALL], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr

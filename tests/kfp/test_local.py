"""The task server of local runs: each call is made in a process of its own."""

import importlib.util
import os

import pytest

from arcloop.errors import ArcloopError, DataError
from arcloop.kfp.local import _PRELOADED, TaskServer
from arcloop.kfp.pod.steps import call


def describe_process(word):
    print(f"working on {word}")
    return os.getpid(), os.getcwd(), os.environ["WORD"]


def fail(kind):
    if kind == "data":
        raise DataError("the store has 1 error(s):\n    one", where="store", remedy="fix it")
    if kind == "exit":
        raise SystemExit(3)
    raise KeyError("x")


def kill_process():
    os.kill(os.getpid(), 9)


@pytest.fixture
def server(tmp_path):
    with TaskServer(tmp_path / "log.txt") as running:
        yield running


@pytest.mark.parametrize("name", _PRELOADED)
def test_preloaded_modules_exist(name):
    """The fork server ignores modules that it cannot import."""
    assert importlib.util.find_spec(name) is not None


def test_without_a_server_the_call_is_made_here():
    assert call("train", os.getpid) == os.getpid()


def test_a_call_has_a_process_with_the_callers_folder_and_environment(
    server, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORD", "first")
    first = call("notify_failure", describe_process, "one")
    monkeypatch.setenv("WORD", "second")
    second = call("notify_failure", describe_process, "two")
    assert first[1:] == (str(tmp_path), "first")
    assert second[1:] == (str(tmp_path), "second")
    assert len({os.getpid(), first[0], second[0]}) == 3
    assert (tmp_path / "log.txt").read_text().splitlines() == ["working on one", "working on two"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("data", "the store has 1 error(s):\n    one\n  where: store\n  remedy: fix it"),
        ("exit", "SystemExit: 3"),
        ("other", "KeyError: 'x'"),
    ],
)
def test_an_error_reaches_the_caller_and_its_traceback_the_log(server, tmp_path, kind, message):
    with pytest.raises(ArcloopError) as failed:
        call("validate", fail, kind)
    assert str(failed.value) == message
    assert server.states == {"prepare": "from the cache", "validate": "failed"}
    assert server.error == f"step validate failed: {message}"
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_a_killed_process_is_a_failure(server):
    with pytest.raises(ArcloopError, match="its process ended with exit code -9"):
        call("prepare", kill_process)


def test_steps_that_did_not_run_came_from_the_cache(server, capsys):
    call("validate", os.getpid)
    call("index", os.getpid)
    assert [name for name, state in server.states.items() if state == "from the cache"] == [
        "prepare",
        "train",
        "embed",
    ]
    assert capsys.readouterr().err.splitlines()[0] == "prepare: from the cache"

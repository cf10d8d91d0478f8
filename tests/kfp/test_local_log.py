"""The cause of a failure, found in what a step printed."""

import os
import subprocess
import sys

import pytest

from arcloop.kfp.local_log import LocalLog, TaskRun

OURS = """\
prepare: 10 images
Traceback (most recent call last):
  File "a.py", line 3, in work
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 1, in <module>
arcloop.errors.DataError: the store has 2 error(s):
    one
    two
  where: /somewhere
  remedy: mend it
"""


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (
            OURS,
            "the store has 2 error(s):\n    one\n    two\n  where: /somewhere\n  remedy: mend it",
        ),
        (
            "Traceback (most recent call last):\n  File 'a'\n    x\nValueError: bad\n\n",
            "ValueError: bad",
        ),
        (
            "Traceback (most recent call last):\n  File 'a'\nKeyboardInterrupt\n",
            "KeyboardInterrupt",
        ),
        ("sh: killed\n\n", "sh: killed"),
        ("", "it printed nothing"),
    ],
)
def test_causes(output, cause):
    assert TaskRun("train", "failed", output=output.split("\n")).cause == cause


def test_tasks_are_read_off_the_output_of_kfp(tmp_path, capsys):
    with LocalLog(tmp_path) as log:
        print("Task prepare cache hit (key=0123); skipping execution.")
        print("02:00 - INFO - Executing task \x1b[96m'train'\x1b[0m")
        print("    Traceback (most recent call last):\n    ValueError: bad")
        print("02:01 - ERROR - Task \x1b[96m'train'\x1b[0m finished with status FAILURE")
    assert [(task.name, task.state) for task in log.tasks] == [
        ("prepare", "cached"), ("train", "failed"),
    ]  # fmt: skip
    assert log.failed.cause == "ValueError: bad"
    assert "\x1b" not in log.path.read_text()
    assert capsys.readouterr().err.startswith("prepare: from the cache\ntrain: failed, 0.0 s\n")


def test_a_step_of_the_warm_python_is_a_process_like_any_other(python, tmp_path):
    """Folder, environment, streams and exit code are the caller's; every step is a new process."""
    shown = "print(os.getcwd(), os.environ['WORD'], sys.executable, os.getpid())"
    timeit = [python, "-m", "timeit", "-n", "1", "-r", "1", "-s", "import os, sys", shown]
    pids = set()
    for _ in range(2):
        done = subprocess.run(
            timeit, cwd=tmp_path, env={**os.environ, "WORD": "w"}, capture_output=True, text=True
        )
        folder, word, executable, pid = done.stdout.splitlines()[0].split()
        assert (folder, word, executable) == (str(tmp_path), "w", sys.executable)
        pids.add(pid)
    assert len(pids) == 2
    piped = subprocess.run(
        [python, "-m", "json.tool", "--compact"], input='{"a":  1}', capture_output=True, text=True
    )
    assert (piped.stdout, piped.returncode) == ('{"a":1}\n', 0)
    refused = subprocess.run([python, "-m", "json.tool", "--bad"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "usage" in refused.stderr


def test_a_step_that_is_killed_is_not_taken_for_done(python):
    suicide = "os.kill(os.getpid(), 9)"
    done = subprocess.run([python, "-m", "timeit", "-n", "1", "-s", "import os", suicide])
    assert done.returncode != 0

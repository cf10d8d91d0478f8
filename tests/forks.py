"""Processes that tests kill, as forks of one interpreter that has imported all packages."""

import atexit
import contextlib
import functools
import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

IMPORTED = [
    "arcloop.cli.launch", "arcloop.evaluation.evaluate", "arcloop.pipeline.training", "optuna",
    "sklearn.manifold", "sklearn.metrics", "torch.utils.tensorboard",
]  # fmt: skip


@functools.cache
def context():
    forkserver._forkserver._stop()  # one with fewer modules, which decodes images
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(IMPORTED)
    return made


def call(function, arguments, output):
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.exit(function(*arguments))


def start(function, *arguments, output=os.devnull):
    """Start a function, whose result is the exit code, in the current folder.

    The process has a session of its own, and writes its output to a file.
    """
    process = context().Process(target=call, args=(function, arguments, output))
    process.start()
    atexit.register(process.kill)  # otherwise pytest waits for it, if its test failed
    return process


def run(function, folder):
    """Run a function, which succeeds, in a folder."""
    with contextlib.chdir(folder):
        process = start(function, output="output.txt")
        process.join(300)
        assert process.exitcode == 0, Path("output.txt").read_text()


def wait_for(condition, process):
    """Wait until a process has reached a condition."""
    deadline = time.monotonic() + 120
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()

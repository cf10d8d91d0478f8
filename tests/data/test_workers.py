"""Tasks are calls of what any process can import: `operator.call` runs them."""

import math
import operator
import os
import signal
import sys
from functools import partial

import pytest

from arcloop.data.sources.base import existing_root
from arcloop.data.sources.workers import Workers
from arcloop.errors import DataError, ResourceError


def run(tasks, count):
    with Workers(count) as workers:
        workers.start(count)
        yield from workers.run(operator.call, tasks)


def test_one_worker_is_this_process():
    assert list(run([os.getpid], 1)) == [os.getpid()]


def test_every_task_is_done_once_elsewhere_and_taken_when_it_is_needed():
    taken = []

    def tasks():
        for number in range(60):
            taken.append(number)
            yield partial(math.factorial, number)
        yield os.getpid

    results = run(tasks(), 2)
    done = [next(results)]
    assert len(taken) < 20
    done += results
    pid = set(done) - {math.factorial(number) for number in range(60)}
    assert len(done) == 61
    assert len(pid) == 1
    assert pid != {os.getpid()}


def test_error_of_a_task_arrives_whole():
    tasks = [os.getpid, partial(existing_root, "nowhere"), os.getpid]
    with pytest.raises(DataError, match="no such folder") as caught:
        list(run(tasks, 2))
    assert caught.value.where.name == "nowhere"
    assert caught.value.remedy == "correct data.root"


def test_error_says_where_in_the_process_it_was_raised():
    with pytest.raises(ZeroDivisionError) as caught:
        list(run([partial(operator.truediv, 1, 0)] * 2, 2))
    assert "in _done" in "".join(caught.value.__notes__)


def test_tasks_and_results_larger_than_a_pipe_holds():
    half = b"x" * (1 << 20)
    tasks = [partial(operator.add, half, half)] * 12
    assert [len(result) for result in run(tasks, 2)] == [2 << 20] * 12


def test_process_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ResourceError, match="cannot be started: No such file"):
        list(run([os.getpid] * 2, 2))


def test_results_not_asked_for_leave_no_process_behind():
    results = run([os.getpid] * 9, 2)
    pid = next(results)
    assert os.path.exists(f"/proc/{pid}")
    results.close()
    assert not os.path.exists(f"/proc/{pid}")


def test_killed_process_is_told():
    tasks = [os.getpid, partial(signal.raise_signal, signal.SIGKILL), os.getpid]
    with pytest.raises(ResourceError, match="process died"):
        list(run(tasks, 2))


def test_no_more_processes_than_tasks():
    with Workers(9) as workers:
        workers.start(1)
        assert list(workers.run(operator.call, [os.getpid])) == [os.getpid()]
        workers.start(2)
        pids = set(workers.run(operator.call, [partial(operator.call, os.getpid)] * 40))
        assert os.getpid() not in pids
        assert 1 <= len(pids) <= 2
        workers.start(1)
        assert set(workers.run(operator.call, [os.getpid] * 40)) <= pids
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)

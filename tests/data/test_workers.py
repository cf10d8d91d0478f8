import os
import signal

import pytest

from arcloop.data.workers import available_workers, run_tasks
from arcloop.errors import DataError, ResourceError


def square(number):
    return number * number, os.getpid()


def fail_on_three(number):
    if number == 3:
        raise DataError("three", where="here", remedy="take another")
    return number


def die_on_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_one_worker_is_this_process():
    assert list(run_tasks(square, range(4), 1)) == [(n * n, os.getpid()) for n in range(4)]


def test_every_task_is_done_once_and_taken_when_it_is_needed():
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    results = run_tasks(square, tasks(), 2)
    done = [next(results)]
    assert len(taken) < 20
    done += results
    assert sorted(value for value, _ in done) == [n * n for n in range(100)]
    assert os.getpid() not in {pid for _, pid in done}


def test_error_of_a_task_arrives_whole():
    with pytest.raises(DataError, match="three") as caught:
        list(run_tasks(fail_on_three, range(10), 2))
    assert caught.value.remedy == "take another"


def test_killed_process_is_told():
    with pytest.raises(ResourceError, match="was killed"):
        list(run_tasks(die_on_three, range(10), 2))


def test_cores():
    assert 1 <= available_workers() <= os.cpu_count()

"""Tasks over processes: few in flight, results as they come, no process left behind.

A process runs `work` and nothing of the script that asked for it. One of multiprocessing would run
the script once more: slow where it imports much, and without `if __name__ == "__main__":` it would
start the same work in every process again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Self, TypeVar

from arcloop.errors import ResourceError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT = 2  # tasks per process: the next is there when one is done, and the last end together
_ENVIRONMENT = {
    # Starting numpy's threads is half of the time to import it, and nothing here needs them.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
sys.path[:] = {path!r}
from arcloop.data.sources.workers import work
work({channel})
"""


class Workers:
    """Processes that do tasks; none is there before it is needed, or after this is left.

    They are started anew: forking a process that has threads, as any with torch has, can deadlock.

    Args:
        count: How many there are at most. With one, everything happens in this process.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._started: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._started:
            self._started.pop().stop()

    def start(self, tasks: int) -> None:
        """Start as many as so many tasks can keep at work, if they are not there.

        Called ahead, what they import is imported while this process finds out what there is to do.

        Raises:
            ResourceError: A process cannot be started.
        """
        wanted = min(self._count, tasks)
        while 1 < wanted > len(self._started):
            self._started.append(_Worker())

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Apply a function of an importable module to tasks; yield results in any order.

        Where no process was started, this one does them.

        Raises:
            ResourceError: A process died, most often killed for want of memory.
        """
        if not self._started:
            yield from map(function, tasks)
            return
        remaining = iter(tasks)
        at = {worker.channel: worker for worker in self._started}
        for worker, task in zip(self._started * _IN_FLIGHT, remaining, strict=False):
            worker.send(function, task)
        while busy := [worker.channel for worker in self._started if worker.in_flight]:
            for channel in wait(busy):
                worker = at[channel]  # type: ignore[index]
                result = worker.receive()
                for task in itertools.islice(remaining, 1):
                    worker.send(function, task)
                yield result


class _Worker:
    """A process that does tasks."""

    def __init__(self) -> None:
        self.channel, theirs = Pipe()
        self.in_flight = 0
        program = _PROGRAM.format(path=sys.path, channel=theirs.fileno())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ENVIRONMENT},
            )
        except OSError as cause:
            self.channel.close()
            raise ResourceError(
                f"a worker process cannot be started: {cause.strerror}",
                remedy="let this user start more processes, or free memory",
            ) from cause
        finally:
            theirs.close()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self.channel.close()

    def send(self, function: Callable[[Any], Any], task: Any) -> None:
        try:
            self.channel.send((function, task))
        except ConnectionError:
            raise _died() from None
        self.in_flight += 1

    def receive(self) -> Any:
        try:
            done, result = self.channel.recv()
        except (EOFError, ConnectionError):
            raise _died() from None
        self.in_flight -= 1
        if not done:
            raise result
        return result


def _died() -> ResourceError:
    return ResourceError(
        "a worker process died",
        remedy="see its last words above; without any, it was killed for want of memory",
    )


def work(channel: int) -> None:
    """Do the tasks of a parent until it kills this process, or is gone.

    Args:
        channel: Number of the file that tasks come from and results go to.
    """
    parent = Connection(channel)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def receive() -> None:
        # In a thread, so that the parent never waits for this process to read, and so that the
        # end of the parent, even a kill, is the end of this process in the middle of a task.
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                tasks.put(parent.recv_bytes())
        os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        parent.send(_done(tasks.get()))


def _done(task: bytes) -> tuple[bool, Any]:
    try:
        function, argument = pickle.loads(task)  # noqa: S301 - of the parent
        return True, function(argument)
    except Exception as cause:  # noqa: BLE001 - the parent raises it
        cause.add_note(traceback.format_exc())  # of here; the parent's says where it was received
        return False, cause

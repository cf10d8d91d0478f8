"""Tasks over processes: few in flight, results as they come, no process left behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from arcloop.errors import ResourceError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT = 3  # tasks per process: enough that none waits for this one to hand out the next


def available_workers() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """Apply a module-level function to tasks in processes; yield results in any order.

    With one worker everything happens in this process. Processes are spawned: forking one that has
    threads, as any process with torch has, can deadlock.

    Raises:
        ResourceError: A process died, most often killed for want of memory.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_follow_parent) as pool:
        remaining = iter(tasks)
        running: set[Future[Result]] = set()
        try:
            while True:
                wanted = workers * _IN_FLIGHT - len(running)
                running |= {pool.submit(function, t) for t in itertools.islice(remaining, wanted)}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise ResourceError(
                "a worker process died",
                remedy="see its last words above; without any, it was killed for want of memory",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and die when it does, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""File locks, and names of temporary folders that identify the process that made them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from arcloop.errors import write_error

_ABANDONED_AFTER_SECONDS = 24 * 3600
_HOST_ID_FILES = (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid"))


def try_lock(path: Path) -> BaseFileLock | None:
    """Acquire the lock of `path` without waiting.

    The lock is a file `.NAME.lock` in the same folder. The operating system releases it when the
    process ends.

    Returns:
        The lock, to be released by the caller; None if another process has it.

    Raises:
        ResourceError: The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as cause:
        raise write_error(path, cause) from cause
    return lock


@contextlib.contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the exclusive lock of `path`, after waiting for a process that has it.

    Args:
        path: File or folder that the lock protects. It need not exist.
        on_wait: Called once if another process has the lock.

    Raises:
        ResourceError: The folder cannot be written.
    """
    lock = try_lock(path)
    if lock is None:
        on_wait()
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        # A waiting process that locks the removed file notices this and locks a new file.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@functools.cache
def _host_id() -> str:
    """Return an id of the host, its boot and the container, within which process ids are unique."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # without /proc, only the host name is used
        parts += [_HOST_ID_FILES[0].read_text(), str(_HOST_ID_FILES[1].readlink())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def process_tag() -> str:
    """Return a suffix for file names that identifies this process: "<host id>-<process id>"."""
    return f"{_host_id()}-{os.getpid()}"


def is_abandoned(path: Path) -> bool:
    """Return whether the process that made a temporary file or folder has ended.

    The name of `path` ends with the `process_tag` of that process. For a process on this
    host, the operating system reports whether it is running. For a process on another host this is
    unknown; its files count as abandoned if none of them has changed for a day.
    """
    tag = path.name.rpartition("tmp-")[2]
    host, _, pid = tag.rpartition("-")
    if host == _host_id() and pid.isdecimal():
        return int(pid) == os.getpid() or not _is_running(int(pid))
    times = []
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(file.stat().st_mtime)
    return time.time() - max(times, default=time.time()) > _ABANDONED_AFTER_SECONDS


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only checks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

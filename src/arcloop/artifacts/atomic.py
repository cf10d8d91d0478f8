"""Atomic writes and file locks: a file or folder has either its old or its new contents."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import glob
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from arcloop.errors import ConfigError, write_error

SYSTEM_NAMES = frozenset({
    "lost+found", "__MACOSX", ".DS_Store", ".Trashes", ".fseventsd", ".Spotlight-V100", ".snapshot",
    "System Volume Information", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini", "@eaDir", "#recycle",
})  # fmt: skip
"""Files and folders that file systems and operating systems create; they contain no user data."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # see rename(2)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_ABANDONED_AFTER_SECONDS = 24 * 3600
_HOST_ID_FILES = (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid"))


def is_empty(folder: Path) -> bool:
    """Return whether a folder contains nothing except `SYSTEM_NAMES`."""
    return all(entry.name in SYSTEM_NAMES for entry in folder.iterdir())


def sha256_file(path: Path, *, sync: bool = False) -> str:
    """Return the sha256 of a file in hex; `sync`: flush the file to the disk first."""
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Return the sha256 of a JSON value in its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: object, *, indent: int | None = 2) -> None:
    """Write JSON atomically; keys keep their order.

    Raises:
        ValueError: A number is not finite.
    """
    write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file in the same folder, fsynced, then renamed."""
    temporary = temporary_sibling(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as cause:
        cause.filename = str(path)  # replaces the temporary name, which users do not know
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_sibling(path: Path) -> Path:
    """Return this process's temporary path for a file or folder to be renamed to `path`."""
    return path.with_name(f".{path.name}.tmp-{process_tag()}")


def remove_abandoned(path: Path) -> None:
    """Remove temporary folders of `path` whose process has ended, see `is_abandoned`."""
    for sibling in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        if is_abandoned(sibling):
            shutil.rmtree(sibling, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Rename a folder to `target` and remove the folder that was there.

    On Linux the folders are exchanged in one step, so that `target` is a complete folder at any
    time. On other systems, `target` does not exist for a moment between two renames.
    """
    try:
        new.rename(target)  # succeeds if the target is missing or empty
    except OSError as cause:
        if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(new, target):
            old = temporary_sibling(target.with_name(f"{target.name}.old"))
            target.rename(old)
            new.rename(target)
            old.rename(new)
        shutil.rmtree(new, ignore_errors=True)
    sync_folder(target.parent)


def replaceable_folder(path: Path) -> Path:
    """Check that `replace_folder` can replace a folder, so that this is known before the work.

    Args:
        path: The folder. It need not exist.

    Returns:
        `path`, or the folder that it links to: a rename would replace the link.

    Raises:
        ConfigError: `path` is a mount point or a file.
    """
    folder = Path(os.path.realpath(path)) if path.is_symlink() else path
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError("this is not a folder", where=path, remedy="choose another folder")
    if folder.is_dir() and _is_mount_point(folder):
        raise ConfigError(
            "this folder is a mount point, which cannot be replaced by a complete folder",
            where=path,
            remedy=f"choose a folder in it, e.g. {path / 'store'}",
        )
    return folder


def _is_mount_point(folder: Path) -> bool:
    """Return whether a folder is a mount point.

    A folder of the same file system can be mounted, too. If it is empty, renaming it shows this.
    """
    if folder.is_mount() or any(folder.iterdir()):
        return folder.is_mount()
    other = temporary_sibling(folder)
    try:
        folder.rename(other)
        other.rename(folder)
    except OSError as cause:
        return cause.errno == errno.EBUSY
    return False


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step by renameat2; False if the system does not support it."""
    rename: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    if rename(*paths, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk where the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

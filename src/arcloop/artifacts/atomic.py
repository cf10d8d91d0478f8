"""Files and folders that are either as they were or as they should be, never in between."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from arcloop.errors import unwritable

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE, see rename(2)."""


def sha256_file(path: Path, *, sync: bool = False) -> str:
    """Return the sha256 of a file's contents in hex; with `sync`, flush it to the disk first."""
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """Return the sha256 of a JSON value in its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: object, *, indent: int | None = 2) -> None:
    """Write JSON atomically, keys as given; a non-finite number is refused."""
    write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary sibling, fsynced, renamed."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as cause:
        cause.filename = str(path)  # a full disk names no file, and nobody knows the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Rename a whole folder to `target`, taking the place of what is there.

    There is no moment without a folder at `target`, so that neither a kill nor somebody who does
    the same at the same time can find it missing. What was there is removed.
    """
    try:
        new.rename(target)  # which an empty folder there does not hinder
    except OSError as cause:
        if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(new, target)
        shutil.rmtree(new, ignore_errors=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _exchange(one: Path, other: Path) -> None:
    """Let two paths of one file system change places at once, by Linux's renameat2."""
    library = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(one), os.fsencode(other)
    rename: Any = getattr(library, "renameat2", None)
    if rename and rename(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0:
        return
    if rename and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    # A file system, or a system, that cannot: two steps.
    aside = other.with_name(f".{other.name}.old-{os.getpid()}")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that ask for the same path waiting; a kill ends it too.

    Raises:
        ResourceError: Nothing can be written beside `path`.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock_file(lock)
    except OSError as cause:
        raise unwritable(path, cause) from cause
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a child has it open


def _lock_file(lock: Path) -> TextIO:
    while True:
        file = open(lock, "w")  # noqa: SIM115 - the caller closes it
        fcntl.flock(file, fcntl.LOCK_EX)
        # Who had it before us has removed it, and somebody may have made another since.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                return file
        file.close()


def remove_stale_drafts(path: Path) -> None:
    """Remove what a killed process left; a live process keeps its draft."""
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        pid = int(stale.name.rpartition("-")[2])
        if pid == os.getpid() or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(stale, ignore_errors=True)

"""Atomic writes: at any time, a file or folder has either its old or its new contents."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from arcloop.artifacts.locks import is_abandoned, process_tag

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # see rename(2)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


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
    for sibling in path.parent.glob(f".{path.name}.tmp-*"):
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

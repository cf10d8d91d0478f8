"""Files and folders that are either as they were or as they should be, never in between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path


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
    """Rename a whole folder to `target`, taking the place of what is there."""
    with contextlib.suppress(OSError):
        target.rmdir()  # an empty folder may stand in for a missing one
    if not target.exists():
        new.rename(target)
    else:
        old = target.parent / f".{target.name}.old-{os.getpid()}"
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_stale_drafts(path: Path) -> None:
    """Remove what a killed process left; a live process keeps its draft."""
    for stale in path.parent.glob(f".{path.name}.tmp-*"):
        pid = int(stale.name.rpartition("-")[2])
        if pid == os.getpid() or not Path(f"/proc/{pid}").exists():
            shutil.rmtree(stale, ignore_errors=True)

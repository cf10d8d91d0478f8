"""Write an artifact to a temporary folder, add its manifest, and rename the folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcloop.artifacts import (
    MANIFEST,
    SCHEMA,
    Artifact,
    file_state,
    read,
    record_verified,
)
from arcloop.artifacts.atomic import (
    SYSTEM_NAMES,
    is_empty,
    remove_abandoned,
    replace_folder,
    replaceable_folder,
    sha256_file,
    temporary_sibling,
    write_json,
)
from arcloop.artifacts.timings import record_timing
from arcloop.errors import ArtifactError, write_error

REVISION = "ARCLOOP_REVISION"
"""Environment variable with the commit of the code in an image."""
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
_RECORDED_PACKAGES = (
    "arcloop", "faiss-cpu", "faiss-gpu", "hydra-core", "numpy", "omegaconf", "pillow",
    "pytorch-lightning", "timm", "torch", "torchmetrics",
)  # fmt: skip


@dataclass
class ArtifactWriter:
    """An artifact that is being written.

    Attributes:
        path: Folder to write the files to.
        info: Properties for the manifest that depend on the kind of artifact.
        parents: Role -> manifest hash of an artifact that this one is made from.
        count: Number of images or vectors processed, for the throughput.
        timed: Additional durations to record; each name ends with its unit.
        linked: File shared with another artifact -> its sha256 and its `file_state` after linking.
    """

    path: Path
    info: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    count: int = 0
    timed: dict[str, float] = field(default_factory=dict)
    linked: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    def link(self, owner: Artifact, name: str) -> None:
        """Add a file of another, verified artifact as a hard link.

        The file is neither copied nor hashed. It remains if one of the artifacts is removed. If the
        file system has no hard links, the file is copied.
        """
        source, target = owner.path / name, self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source)
        except OSError as cause:
            if cause.errno not in _CANNOT_LINK:
                raise
            shutil.copyfile(source, target)
        else:
            self.linked[name] = owner.file_sha256(name), file_state(target)


@contextlib.contextmanager
def write_artifact(
    path: Path, kind: str, *, config: Mapping[str, Any], parents: Mapping[str, str] | None = None
) -> Iterator[ArtifactWriter]:
    """Write an artifact to a temporary folder next to `path` and rename it when it is complete.

    An existing artifact at `path` is replaced when the new one is complete. If the body of the
    `with` statement raises, the temporary folder is removed.

    Args:
        path: Folder of the artifact.
        kind: Kind of the artifact, see `Artifact`.
        config: The resolved settings that it is made with.
        parents: Role -> manifest hash of an artifact that it is made from.

    Raises:
        ConfigError: `path` is a mount point or a file.
        ArtifactError: `path` contains files but is not an artifact.
        ResourceError: The folder cannot be written.
    """
    folder = replaceable_folder(path)
    if folder.exists() and not is_empty(folder) and not (folder / MANIFEST).exists():
        raise ArtifactError(
            "refusing to replace a folder that arcloop did not write",
            where=path,
            remedy="choose another folder, or empty this one",
        )
    path = folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        temporary = temporary_sibling(path)
        temporary.mkdir()
    except OSError as cause:
        raise write_error(path, cause) from cause
    start = time.monotonic()
    try:
        writer = ArtifactWriter(temporary, parents=dict(parents or {}))
        yield writer
        seconds = time.monotonic() - start
        record_timing(temporary, seconds, writer.count / seconds, writer.timed)
        written = write_manifest(
            temporary,
            kind,
            config=config,
            parents=writer.parents,
            info=writer.info,
            known={name: sha256 for name, (sha256, _) in writer.linked.items()},
        )
        if writer.linked:
            record_verified(written, {name: state for name, (_, state) in writer.linked.items()})
        replace_folder(temporary, path)
    except OSError as cause:
        raise write_error(path, cause) from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(
    path: Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    info: Mapping[str, Any] | None = None,
    exclude: Collection[str] = (),
    known: Mapping[str, str] | None = None,
) -> Artifact:
    """Write the manifest of the files in `path`, which makes the folder an artifact.

    Subfolders with a manifest are separate artifacts and are not listed.

    Args:
        path: The folder.
        kind: Kind of the artifact.
        config: The resolved settings that it was made with.
        parents: Role -> manifest hash of an artifact that it was made from.
        info: Properties that depend on the kind of artifact.
        exclude: Subfolders that are not listed, e.g. files of loggers, which contain times.
        known: File -> sha256, for files whose hash is already known.

    Returns:
        The artifact.
    """
    names = [name for name in _list_files(path) if name.partition("/")[0] not in exclude]
    hashes = dict(known or {})
    unread = [name for name in names if name not in hashes]
    with ThreadPoolExecutor() as pool:
        computed = pool.map(lambda name: sha256_file(path / name, sync=True), unread)
        hashes |= dict(zip(unread, computed, strict=True))
    manifest = {
        "schema": SCHEMA,
        "kind": kind,
        "files": {
            name: {"sha256": hashes[name], "size": (path / name).stat().st_size} for name in names
        },
        "parents": dict(sorted(parents.items())),
        "config": config,
        "info": dict(info or {}),
        "code": {
            "git": git_revision(),
            "packages": package_versions(),
            "threads": os.environ.get("OMP_NUM_THREADS"),  # every step sets it
        },
    }
    write_json(path / MANIFEST, manifest)
    return read(path, kind)


def _list_files(path: Path) -> list[str]:
    """List the files of the artifact, without hidden files and without nested artifacts."""
    names = []
    for folder, subfolders, files in os.walk(path):
        here = Path(folder)
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in SYSTEM_NAMES and not (here / name / MANIFEST).exists()
        )
        names += [
            str((here / name).relative_to(path))
            for name in files
            if not name.startswith(".") and not (here == path and name == MANIFEST)
        ]
    return sorted(names)


@functools.cache
def git_revision() -> str | None:
    """Return the commit of the code, with "-dirty" for local changes; None if it is not known.

    An image contains no repository; its build records the commit in ARCLOOP_REVISION.
    """
    here = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(REVISION) or None
    return revision.stdout.strip() or None


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that can change a result."""
    versions = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions

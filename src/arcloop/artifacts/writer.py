"""Writing an artifact: beside its place, sealed by its manifest, then in its place in one step."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcloop.artifacts import MANIFEST, SCHEMA, Artifact, read, read_stamp, timings, write_stamp
from arcloop.artifacts.atomic import remove_stale_drafts, replace_folder, sha256_file, write_json
from arcloop.artifacts.provenance import git_revision, package_versions
from arcloop.errors import ArtifactError, unwritable

_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


@dataclass
class Draft:
    """A folder being written.

    Attributes:
        path: Where to put files.
        info: Facts of its kind, for the manifest.
        parents: Role -> hash of what it is made from.
        count: Images or vectors that went through, for the throughput.
        adopted: Files taken over from another artifact as they are -> that artifact.
        timed: Other times worth a note, by name and unit.
    """

    path: Path
    info: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    count: int = 0
    timed: dict[str, float] = field(default_factory=dict)
    adopted: dict[str, Artifact] = field(default_factory=dict)

    def adopt(self, owner: Artifact, name: str) -> None:
        """Take over a file of another, verified artifact.

        It becomes a second name of the same file: nothing is copied or hashed, either artifact may
        be removed, and the file stays for the other. A file system that cannot do so copies.
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
            self.adopted[name] = owner


@contextlib.contextmanager
def writing(
    path: Path, kind: str, *, config: Mapping[str, Any], parents: Mapping[str, str] | None = None
) -> Iterator[Draft]:
    """Write an artifact to a temporary sibling and rename it to `path` when whole.

    An artifact already at `path` stays until the new one is complete, then is replaced. When the
    body raises, nothing is left behind.

    Raises:
        ArtifactError: `path` holds something that is not an artifact.
        ResourceError: The target cannot be written.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST).exists():
        raise ArtifactError(
            "refusing to replace a folder that arcloop did not write",
            where=path,
            remedy="choose another folder, or empty this one",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_drafts(path)
        temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
        temporary.mkdir()
    except OSError as cause:
        raise unwritable(path, cause) from cause
    watch = timings.Stopwatch()
    try:
        draft = Draft(temporary, parents=dict(parents or {}))
        yield draft
        timings.note(temporary, watch.seconds, draft.count / watch.seconds, draft.timed)
        sealed = seal(
            temporary,
            kind,
            config=config,
            parents=draft.parents,
            info=draft.info,
            known={name: owner.file_sha256(name) for name, owner in draft.adopted.items()},
        )
        if stamps := _adopted_stamps(draft):
            write_stamp(sealed, stamps)
        replace_folder(temporary, path)
    except OSError as cause:
        raise unwritable(path, cause) from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(
    path: Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    info: Mapping[str, Any] | None = None,
    apart: Collection[str] = (),
    known: Mapping[str, str] | None = None,
) -> Artifact:
    """Write the manifest of the files now in `path`, last and atomically, and return the artifact.

    Folders inside that hold a manifest of their own are artifacts of their own and not listed.

    Args:
        path: The folder.
        kind: What it is.
        config: The resolved settings it was made with.
        parents: Role -> hash of what it was made from.
        info: Facts of its kind.
        apart: Folders in it that are not listed: what loggers wrote, with times in it.
        known: Files that need not be read again -> their sha256.
    """
    names = [name for name in _own_files(path) if name.partition("/")[0] not in apart]
    hashes = dict(known or {})
    unread = [name for name in names if name not in hashes]
    with ThreadPoolExecutor() as pool:
        read_now = pool.map(lambda name: sha256_file(path / name, sync=True), unread)
        hashes |= dict(zip(unread, read_now, strict=True))
    manifest = {
        "schema": SCHEMA,
        "kind": kind,
        "files": {
            name: {"sha256": hashes[name], "size": (path / name).stat().st_size} for name in names
        },
        "parents": dict(sorted(parents.items())),
        "config": config,
        "info": dict(info or {}),
        "code": {"git": git_revision(), "packages": package_versions()},
    }
    write_json(path / MANIFEST, manifest)
    return read(path, kind)


def _own_files(path: Path) -> list[str]:
    names = []
    for folder, subfolders, files in os.walk(path):
        here = Path(folder)
        subfolders[:] = sorted(s for s in subfolders if not (here / s / MANIFEST).exists())
        names += [
            str((here / name).relative_to(path))
            for name in files
            if not name.startswith(".") and not (here == path and name == MANIFEST)
        ]
    return sorted(names)


def _adopted_stamps(draft: Draft) -> dict[str, list[int]]:
    """Return what was verified of the adopted files, where they came from."""
    owners = {owner.path: owner for owner in draft.adopted.values()}
    known = {path: read_stamp(path, owner.sha256) for path, owner in owners.items()}
    return {
        name: known[owner.path][name]
        for name, owner in draft.adopted.items()
        if name in known[owner.path]
    }

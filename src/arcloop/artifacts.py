"""Every artifact is a folder whose `manifest.json` is written last and verified on load.

A folder without a manifest is not there. A manifest holds the sha256 and size of every file, the
hashes of the artifacts it was made from, the resolved config, and the versions of code and
packages, so any answer can be walked back to the images it came from.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcloop import times
from arcloop.atomic import remove_stale_drafts, replace_folder, sha256_file, write_json
from arcloop.errors import ArtifactError, unwritable
from arcloop.provenance import git_revision, package_versions

SCHEMA = 1
MANIFEST = "manifest.json"
_STAMP = ".verified.json"
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class Artifact:
    """A whole, verified artifact.

    Attributes:
        path: Its folder.
        kind: What it is: store, validation, run, gallery, index, evaluation or export.
        sha256: Hash of its manifest, hence of all it holds; children name it as their parent.
        files: Relative path -> {"sha256": hex, "size": bytes}.
        parents: Role -> hash of what it was made from.
        config: The resolved settings it was made with.
        info: Facts of its kind, e.g. a store's rows and image shape.
    """

    path: Path
    kind: str
    sha256: str
    files: Mapping[str, Mapping[str, Any]]
    parents: Mapping[str, str]
    config: Mapping[str, Any]
    info: Mapping[str, Any]

    def file_sha256(self, name: str) -> str:
        """Return the recorded sha256 of one file."""
        return str(self.files[name]["sha256"])


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
    watch = times.Stopwatch()
    try:
        draft = Draft(temporary, parents=dict(parents or {}))
        yield draft
        times.note(temporary, watch.seconds, draft.count / watch.seconds, draft.timed)
        sealed = seal(
            temporary,
            kind,
            config=config,
            parents=draft.parents,
            info=draft.info,
            known={name: owner.file_sha256(name) for name, owner in draft.adopted.items()},
        )
        if stamps := _adopted_stamps(draft):
            _write_stamp(sealed, stamps)
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


def read(path: Path, kind: str) -> Artifact:
    """Read an artifact's manifest without looking at its files.

    Raises:
        ArtifactError: It is missing, of another kind, or the manifest is no manifest.
    """
    file = path / MANIFEST
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"there is no {kind} here", where=path, remedy=_remedy(kind)) from None
    try:
        manifest = json.loads(content)
        schema, found = manifest["schema"], manifest["kind"]
    except (ValueError, KeyError, TypeError):
        raise _damaged(file, "is not a manifest") from None
    if schema != SCHEMA:
        raise ArtifactError(
            f"manifest has schema {schema}; this version of arcloop reads {SCHEMA}",
            where=file,
            remedy=_remedy(kind),
        )
    if found != kind:
        raise ArtifactError(
            f"this is an artifact of kind {found!r}, not {kind!r}",
            where=path,
            remedy=f"pass the path of a {kind}",
        )
    return Artifact(
        path=path,
        kind=kind,
        sha256=hashlib.sha256(content).hexdigest(),
        files=manifest["files"],
        parents=manifest["parents"],
        config=manifest["config"],
        info=manifest["info"],
    )


def load(path: Path, kind: str, *, trust: bool = True) -> Artifact:
    """Read and verify an artifact.

    Every file is hashed; hashes of files whose size, time and inode are those of the last
    verification are taken from it, so a large store is read once, not at every start.

    Args:
        path: Its folder.
        kind: What it must be.
        trust: Take those hashes; False: read every file again.

    Raises:
        ArtifactError: It is missing, half written, of another kind, or a file was changed.
    """
    path = Path(path)
    artifact = read(path, kind)
    known = _read_stamp(path, artifact.sha256) if trust else {}
    stamps: dict[str, list[int]] = {}
    unknown: list[str] = []
    for name, entry in artifact.files.items():
        try:
            stamps[name] = _stamp(path / name)
        except FileNotFoundError:
            raise _damaged(path / name, "is missing") from None
        if (size := stamps[name][0]) != entry["size"]:
            raise _damaged(path / name, f"has {size} bytes, not {entry['size']}")
        if known.get(name) != stamps[name]:
            unknown.append(name)
    with ThreadPoolExecutor() as pool:
        for name, found in zip(
            unknown, pool.map(lambda n: sha256_file(path / n), unknown), strict=True
        ):
            if found != artifact.files[name]["sha256"]:
                raise _damaged(path / name, "has other contents than when it was written")
    if unknown:
        with contextlib.suppress(OSError):  # a read-only artifact is verified in full every time
            _write_stamp(artifact, stamps)
    return artifact


def current(
    path: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]
) -> Artifact | None:
    """Return the artifact at `path` if it is of these settings and parents, so need not be remade.

    Raises:
        ArtifactError: It is, but was damaged since.
    """
    if not exists(path):
        return None
    found = read(path, kind)
    if found.config != config or found.parents != parents:
        return None
    return load(path, kind)


def find(folder: Path, kind: str, sha256: str) -> Path | None:
    """Return the artifact below `folder` whose manifest has this hash, None if there is none."""
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        if sha256_file(manifest) == sha256 and read(manifest.parent, kind):
            return manifest.parent
    return None


def among(folder: Path, kind: str) -> list[Artifact]:
    """Return the artifacts of a kind that lie in a folder, by name, without verifying them."""
    found = []
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        if not manifest.parent.name.startswith("."):  # a draft, not renamed yet
            with contextlib.suppress(ArtifactError):
                found.append(read(manifest.parent, kind))
    return found


def exists(path: Path) -> bool:
    """Whether a whole artifact is at `path` (its manifest is there)."""
    return (Path(path) / MANIFEST).is_file()


def _remedy(kind: str) -> str:
    verb = {
        "store": "prepare", "validation": "validate", "run": "train", "gallery": "embed",
        "index": "index", "evaluation": "evaluate",
    }.get(kind, kind)  # fmt: skip
    return f"make it with `arcloop {verb}`, or check the path"


def _damaged(file: Path, how: str) -> ArtifactError:
    return ArtifactError(
        f"{file.name} {how}",
        where=file,
        remedy=f"restore the file, or delete {file.parent} and make it again",
    )


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


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _adopted_stamps(draft: Draft) -> dict[str, list[int]]:
    """Return what was verified of the adopted files, where they came from."""
    owners = {owner.path: owner for owner in draft.adopted.values()}
    known = {path: _read_stamp(path, owner.sha256) for path, owner in owners.items()}
    return {
        name: known[owner.path][name]
        for name, owner in draft.adopted.items()
        if name in known[owner.path]
    }


def _write_stamp(artifact: Artifact, stamps: Mapping[str, list[int]]) -> None:
    write_json(artifact.path / _STAMP, {"manifest": artifact.sha256, "files": stamps})


def _read_stamp(path: Path, manifest_sha256: str) -> dict[str, list[int]]:
    try:
        stamp = json.loads((path / _STAMP).read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(stamp["files"]) if stamp.get("manifest") == manifest_sha256 else {}

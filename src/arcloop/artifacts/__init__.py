"""Artifacts: folders with a `manifest.json` that is written last and verified on load.

A folder without a manifest is not an artifact. A manifest contains the sha256 and size of every
file, the manifest hashes of the parents, the resolved config, and the versions of the code and the
packages, so that any answer can be traced back to the images it came from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import sha256_file, write_json
from arcloop.errors import ArtifactError

SCHEMA = 1
MANIFEST = "manifest.json"
CLEANED = ".cleaned.json"
"""File in a run whose model and checkpoints `arcloop clean` removed."""
JOB_RECORD, JOB_LOG = "job.json", "job.log"
"""Files of a sweep in the folder of a job; if it is a run, they are no part of the run."""
_VERIFIED = ".verified.json"
_SECTIONS = ("files", "parents", "config", "info", "code")


@dataclass(frozen=True)
class Artifact:
    """The manifest of an artifact.

    Attributes:
        path: Folder of the artifact.
        kind: "store", "validation", "run", "gallery", "index", "evaluation" or "export".
        sha256: Hash of the manifest, which contains the hashes of all files. Artifacts that are
            made from this one record it as a parent hash.
        files: Relative path -> {"sha256": hex, "size": bytes}.
        parents: Role -> manifest hash of an artifact that this one was made from.
        config: The resolved settings that it was made with.
        info: Properties that depend on the kind, e.g. the rows and image shape of a store.
        code: Git revision and versions of packages.
    """

    path: Path
    kind: str
    sha256: str
    files: Mapping[str, Mapping[str, Any]]
    parents: Mapping[str, str]
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    code: Mapping[str, Any]

    def file_sha256(self, name: str) -> str:
        """Return the recorded sha256 of one file."""
        return str(self.files[name]["sha256"])


def read(path: Path, kind: str | None) -> Artifact:
    """Read the manifest of an artifact without verifying its files; `kind` None: of any kind.

    Raises:
        ArtifactError: The artifact is missing, of another kind, or its manifest is damaged.
    """
    file = path / MANIFEST
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = f"there is no {kind or 'artifact'} here"
        raise ArtifactError(what, where=path, remedy=_remedy(kind)) from None
    try:
        manifest = json.loads(content)
        schema, found = manifest["schema"], manifest["kind"]
        sections = {name: dict(manifest[name]) for name in _SECTIONS}
    except (ValueError, KeyError, TypeError):
        raise _damaged(file, "is not a manifest") from None
    if schema != SCHEMA:
        raise ArtifactError(
            f"manifest has schema {schema}; this version of arcloop reads {SCHEMA}",
            where=file,
            remedy=_remedy(kind),
        )
    if kind not in (None, found):
        raise ArtifactError(
            f"this is an artifact of kind {found!r}, not {kind!r}",
            where=path,
            remedy=f"pass the path of a {kind}",
        )
    return Artifact(path, found, hashlib.sha256(content).hexdigest(), **sections)


def load(path: Path, kind: str | None, *, trust: bool = True) -> Artifact:
    """Read and verify an artifact.

    Every file is hashed, except files whose size, modification time and inode are unchanged since
    the last verification. A large store is therefore read once and not at every start.

    Args:
        path: Folder of the artifact.
        kind: Expected kind; None for any kind.
        trust: Skip files that are unchanged since the last verification; False hashes all files.

    Raises:
        ArtifactError: The artifact is missing, incomplete, of another kind, or a file was changed.
    """
    path = Path(path)
    artifact = read(path, kind)
    verified = _read_verified(path, artifact.sha256) if trust else {}
    states: dict[str, list[int]] = {}
    changed: list[str] = []
    for name, entry in artifact.files.items():
        try:
            states[name] = file_state(path / name)
        except FileNotFoundError:
            if is_cleaned(path):
                raise ArtifactError(
                    f"`arcloop clean` removed {name} of this run",
                    where=path,
                    remedy="use a run that was kept, such as `best` in the folder of the sweep, or"
                    " train it again: `arcloop diff RUN_DIR` prints the command",
                ) from None
            raise _damaged(path / name, "is missing") from None
        if (size := states[name][0]) != entry["size"]:
            raise _damaged(path / name, f"has {size} bytes, not {entry['size']}")
        if verified.get(name) != states[name]:
            changed.append(name)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: sha256_file(path / name), changed)
        for name, found in zip(changed, hashes, strict=True):
            if found != artifact.files[name]["sha256"]:
                raise _damaged(path / name, "was changed after it was written")
    if changed:
        with contextlib.suppress(OSError):  # a read-only artifact is hashed every time
            record_verified(artifact, states)
    return artifact


def load_if_current(
    path: Path, kind: str, config: Mapping[str, Any], parents: Mapping[str, str]
) -> Artifact | None:
    """Return the artifact at `path` if it was made with these settings and parents, else None.

    Raises:
        ArtifactError: The artifact is current but damaged.
    """
    if not exists(path):
        return None
    found = read(path, kind)
    if found.config != config or found.parents != parents:
        return None
    return load(path, kind)


def find_by_hash(folder: Path, kind: str, sha256: str) -> Path | None:
    """Return the artifact in `folder` whose manifest has this hash, or None."""
    return next((a.path for a in list_artifacts(folder, kind) if a.sha256 == sha256), None)


def list_artifacts(folder: Path, kind: str) -> list[Artifact]:
    """Return the artifacts of a kind in a folder, sorted by name, without verifying them."""
    found = []
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        if not manifest.parent.name.startswith("."):  # otherwise it is still being written
            with contextlib.suppress(ArtifactError):
                found.append(read(manifest.parent, kind))
    return found


def is_cleaned(path: Path) -> bool:
    """Return whether `arcloop clean` removed the model and the checkpoints of a run."""
    return (path / CLEANED).is_file()


def without_link(path: Path) -> Path:
    """Return the folder that a link to a folder next to it names, such as `best` of a sweep.

    Other paths, such as links to another disk, are returned as they are.
    """
    with contextlib.suppress(OSError):
        target = path.readlink()
        if target.name == str(target):
            return path.with_name(target.name)
    return path


def exists(path: Path) -> bool:
    """Return whether `path` is an artifact, i.e. has a manifest."""
    return (Path(path) / MANIFEST).is_file()


def _remedy(kind: str | None) -> str:
    verb = {
        "store": "prepare", "validation": "validate", "run": "train", "gallery": "embed",
        "index": "index", "evaluation": "evaluate",
    }.get(kind or "run", kind)  # fmt: skip
    return f"make it with `arcloop {verb}`, or check the path"


def _damaged(file: Path, how: str) -> ArtifactError:
    return ArtifactError(
        f"{file.name} {how}",
        where=file,
        remedy=f"restore the file, or delete {file.parent} and make it again",
    )


def file_state(file: Path) -> list[int]:
    """Return the size, modification time and inode of a file."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def record_verified(artifact: Artifact, states: Mapping[str, list[int]]) -> None:
    """Record the size, modification time and inode of the verified files of an artifact."""
    write_json(artifact.path / _VERIFIED, {"manifest": artifact.sha256, "files": states})


def _read_verified(path: Path, manifest_sha256: str) -> dict[str, list[int]]:
    """Return the record of the last verification; empty if there is none for this manifest."""
    try:
        recorded = json.loads((path / _VERIFIED).read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(recorded["files"]) if recorded.get("manifest") == manifest_sha256 else {}

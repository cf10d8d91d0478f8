"""Every artifact is a folder whose `manifest.json` is written last and verified on load.

A folder without a manifest is not there. A manifest holds the sha256 and size of every file, the
hashes of the artifacts it was made from, the resolved config, and the versions of code and
packages, so any answer can be walked back to the images it came from.
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
_STAMP = ".verified.json"


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
    known = read_stamp(path, artifact.sha256) if trust else {}
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
            write_stamp(artifact, stamps)
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


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def write_stamp(artifact: Artifact, stamps: Mapping[str, list[int]]) -> None:
    """Note beside an artifact which files were verified, and as what."""
    write_json(artifact.path / _STAMP, {"manifest": artifact.sha256, "files": stamps})


def read_stamp(path: Path, manifest_sha256: str) -> dict[str, list[int]]:
    """Return size, time and inode of the files of this manifest when last verified."""
    try:
        stamp = json.loads((path / _STAMP).read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(stamp["files"]) if stamp.get("manifest") == manifest_sha256 else {}

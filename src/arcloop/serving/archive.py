"""Packs a finished run into NAME-VERSION.mar: model, index, labels, code and provenance."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging_utils import ModelExportUtils

from arcloop import artifacts, runtime
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_json
from arcloop.errors import ArtifactError
from arcloop.runtime import ARCHIVED_PACKAGE, MANIFEST, runtimes, searcher
from arcloop.serving.model_file import find_model
from arcloop.serving.model_store import archive_file_name, make_version
from arcloop.serving.servers.config_files import model_config
from arcloop.serving.servers.members import TORCHSERVE_MANIFEST
from arcloop.serving.settings import DeploySettings

SCHEMA = 1
MODEL_CONFIG = "model-config.yaml"
_INDEX_FILES = (searcher.INDEX, searcher.LABELS, searcher.ROW_LABELS)
_HANDLER = f"""\
from {ARCHIVED_PACKAGE} import handler


class Handler(handler.Handler):
    pass
"""


@dataclass(frozen=True)
class ArchiveContents:
    """The files and the manifest of an archive.

    Attributes:
        name: Name of the model.
        files: Name in the archive -> source file, or content.
        manifest: Hashes of all files, the artifacts they were made from, the runtime of the model,
            and the result of the gate. It does not contain the version, so that it depends only on
            the files.
    """

    name: str
    files: Mapping[str, Path | bytes]
    manifest: Mapping[str, Any]

    @property
    def lineage(self) -> str:
        """A short hash of the manifest; equal for archives with the same files and parents."""
        return sha256_json(self.manifest)[:12]

    def new_version(self) -> str:
        """Return a version with the current time for an archive with these contents."""
        return make_version(datetime.now(UTC), self.lineage)


def collect(run_dir: Path, settings: DeploySettings, *, force: bool) -> ArchiveContents:
    """Verify a finished run and collect the contents of its archive.

    Args:
        run_dir: The run, with index and evaluation.
        settings: Name, sizes and limits.
        force: Accept a run that was not evaluated or did not pass its gate; the manifest records
            this.

    Raises:
        ArtifactError: A part is missing, damaged or from another model, or the gate did not pass.
        ConfigError: The run was not exported to the format of `deploy.runtime`.
    """
    run = artifacts.load(run_dir, "run")
    index = artifacts.load(run_dir / "index", "index")
    _require_parent(index, "model", run.file_sha256(searcher.MODEL))
    model = find_model(run, settings)
    gate = _gate_result(run_dir / "evaluation", index, force=force)
    files: dict[str, Path | bytes] = {
        **{name: path for name, (path, _) in model.files.items()},
        # Older versions wrote no file of row labels.
        **{name: index.path / name for name in _INDEX_FILES if name in index.files},
        MODEL_CONFIG: model_config(settings).encode(),
        **runtime_files(),
    }
    recorded = {name: sha256 for name, (_, sha256) in model.files.items()}
    recorded |= {name: index.file_sha256(name) for name in index.files}
    manifest = {
        "schema": SCHEMA,
        "kind": "archive",
        "name": settings.name,
        "files": {
            name: {
                "sha256": hashlib.sha256(source).hexdigest()
                if isinstance(source, bytes)
                else recorded[name]
            }
            for name, source in sorted(files.items())
        },
        "parents": {
            **dict(sorted(index.parents.items())),
            "index": index.sha256,
            "run": run.sha256,
            "store": run.parents["store"],
        },
        "index": index.config["index"],
        "runtime": dict(model.facts),
        "gate": gate,
        "forced": not gate["passed"],
    }
    return ArchiveContents(settings.name, files, manifest)


def runtime_files() -> dict[str, bytes]:
    """Return the code of an archive: name in the archive -> content.

    TorchServe imports `handler.py` by name and requires a class that is defined in that file.
    """
    folder = Path(runtime.__file__).parent
    code = {
        f"{ARCHIVED_PACKAGE}/{file.name}": file.read_bytes() for file in sorted(folder.glob("*.py"))
    }
    return {"handler.py": _HANDLER.encode(), **code}


def write_archive(contents: ArchiveContents, folder: Path, version: str) -> Path:
    """Write NAME-VERSION.mar; the same contents and version give the same bytes.

    TorchServe's manifest is made by the model archiver, but the zip file is written here: the
    archiver would store the current time in every entry and delete the shared folder /tmp/NAME.

    Args:
        contents: Files and manifest.
        folder: Folder to write to. The file is flushed to the disk; writing it is not atomic.
        version: The version; see `ArchiveContents.new_version`.

    Returns:
        The file.
    """
    torchserve_manifest = json.loads(
        ModelExportUtils.generate_manifest_json(
            ModelArchiverConfig(
                model_name=contents.name,
                handler="handler.py",
                version=version,
                serialized_file=runtimes.FILES[runtimes.runtime_of(contents.manifest)],
                config_file=MODEL_CONFIG,
            )
        )
    )
    torchserve_manifest["createdOn"] = version.partition("-")[0]
    entries: dict[str, Path | bytes] = {
        **contents.files,
        MANIFEST: _json({**contents.manifest, "version": version}),
        TORCHSERVE_MANIFEST: _json(torchserve_manifest),
    }
    target = folder / archive_file_name(contents.name, version)
    with open(target, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, source in sorted(entries.items()):
                _add_entry(archive, name, source)
        file.flush()
        os.fsync(file.fileno())
    return target


def read_manifest(archive: Path) -> dict[str, Any]:
    """Read the manifest of an archive without unpacking it.

    Raises:
        ArtifactError: The file is not an archive that arcloop wrote.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            manifest: dict[str, Any] = json.loads(opened.read(MANIFEST))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as cause:
        raise ArtifactError(
            f"not a model archive: {cause}",
            where=archive,
            remedy="deploy the run again",
        ) from None
    return manifest


def _gate_result(path: Path, index: Artifact, *, force: bool) -> dict[str, Any]:
    """Return the gate result of the evaluation, which must belong to this index."""
    if not artifacts.exists(path):
        if not force:
            raise ArtifactError(
                "the run has not been evaluated",
                where=path,
                remedy="run `arcloop evaluate`, or deploy it anyway with force=true",
            )
        return {"passed": False, "reasons": ["The run has not been evaluated."]}
    evaluation = artifacts.load(path, "evaluation")
    _require_parent(evaluation, "index", index.sha256)
    gate = json.loads((path / "gate.json").read_bytes())
    if gate["passed"] is not True and not force:
        raise ArtifactError(
            "the gate did not pass: " + " ".join(gate["reasons"]),
            where=path / "gate.json",
            remedy="train a better model, or deploy it anyway with force=true",
        )
    return {"passed": gate["passed"], "reasons": list(gate["reasons"])}


def _require_parent(artifact: Artifact, parent: str, sha256: str) -> None:
    if artifact.parents[parent] != sha256:
        raise ArtifactError(
            f"the {artifact.kind} was made from another {parent}",
            where=artifact.path,
            remedy="run `arcloop index`, then `arcloop evaluate`",
        )


def _add_entry(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    entry = zipfile.ZipInfo(name)  # the modification time is 1980-01-01
    entry.external_attr = 0o644 << 16
    if isinstance(source, bytes):
        archive.writestr(entry, source)
        return
    entry.file_size = source.stat().st_size  # determines whether zipfile uses zip64
    with open(source, "rb") as file, archive.open(entry, "w") as packed:
        shutil.copyfileobj(file, packed, 1 << 20)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

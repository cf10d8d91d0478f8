"""A finished run -> NAME-VERSION.mar: all that an answer needs, and where it all came from."""

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
from arcloop.errors import ArtifactError, ConfigError
from arcloop.runtime import responder, searcher
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.serving.servers.server_config import model_config
from arcloop.serving.settings import DeploySettings
from arcloop.serving.store.naming import VERSION, file_name, make_version

SCHEMA = 1
MODEL_CONFIG = "model-config.yaml"
_TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
RUNTIME = "arcloop_runtime"
"""Package of the archive that holds a copy of `arcloop.runtime`."""
_HANDLER = f"""\
from {RUNTIME} import handler


class Handler(handler.Handler):
    pass
"""


@dataclass(frozen=True)
class Parts:
    """What goes into an archive.

    Attributes:
        name: Of the model.
        files: Name in the archive -> where it is, or its content.
        manifest: Hashes of all files, the artifacts they came from, the gate's verdict. Without
            the version, so that it depends on nothing but what is archived.
    """

    name: str
    files: Mapping[str, Path | bytes]
    manifest: Mapping[str, Any]

    @property
    def lineage(self) -> str:
        """A short hash of the manifest: equal parts and origin, equal lineage."""
        return sha256_json(self.manifest)[:12]


def collect(run_dir: Path, settings: DeploySettings, *, force: bool) -> Parts:
    """Verify a finished run and gather what its archive will hold.

    Args:
        run_dir: The run, with index and evaluation.
        settings: Name, sizes and limits.
        force: Accept a run whose gate did not pass, or was never asked; the manifest says so.

    Raises:
        ArtifactError: A part is missing, damaged or of another model, or the gate did not pass.
    """
    run = artifacts.load(run_dir, "run")
    index = artifacts.load(run_dir / "index", "index")
    _require_parent(index, "model", run.file_sha256(searcher.MODEL))
    gate = _verdict(run_dir / "evaluation", index, force=force)
    files: dict[str, Path | bytes] = {
        searcher.MODEL: run_dir / searcher.MODEL,
        GOLDEN: run_dir / GOLDEN,
        searcher.INDEX: index.path / searcher.INDEX,
        searcher.LABELS: index.path / searcher.LABELS,
        MODEL_CONFIG: model_config(settings).encode(),
        **runtime_files(),
    }
    known = {**run.files, **index.files}
    manifest = {
        "schema": SCHEMA,
        "kind": "archive",
        "name": settings.name,
        "files": {
            name: {
                "sha256": hashlib.sha256(source).hexdigest()
                if isinstance(source, bytes)
                else known[name]["sha256"]
            }
            for name, source in sorted(files.items())
        },
        "parents": {
            **dict(sorted(index.parents.items())),
            "index": index.sha256,
            "run": run.sha256,
            "store": run.parents["store"],
        },
        "gate": gate,
        "forced": not gate["passed"],
    }
    return Parts(settings.name, files, manifest)


def runtime_files() -> dict[str, bytes]:
    """Return the code of an archive: name in the archive -> content.

    TorchServe imports `handler.py` by name and looks for a class that is defined in it.
    """
    folder = Path(runtime.__file__).parent
    code = {f"{RUNTIME}/{file.name}": file.read_bytes() for file in sorted(folder.glob("*.py"))}
    return {"handler.py": _HANDLER.encode(), **code}


def write_archive(parts: Parts, folder: Path, *, version: str | None = None) -> Path:
    """Write NAME-VERSION.mar; the same parts and version give the same bytes.

    The archiver describes the model; the zip is written here, because the archiver's own takes the
    time of writing into every entry, and empties the shared folder /tmp/NAME on its way.

    Args:
        parts: What it holds.
        folder: Where to write; flushed to the disk, but not atomic.
        version: By default that of these parts, archived now.

    Returns:
        The file.

    Raises:
        ConfigError: The version is none.
    """
    version = version or make_version(datetime.now(UTC), parts.lineage)
    if not VERSION.fullmatch(version):
        raise ConfigError(
            f"{version!r} is no version", remedy="a version is TIME-LINEAGE, as `list` shows"
        )
    described = json.loads(
        ModelExportUtils.generate_manifest_json(
            ModelArchiverConfig(
                model_name=parts.name,
                handler="handler.py",
                version=version,
                serialized_file=searcher.MODEL,
                config_file=MODEL_CONFIG,
            )
        )
    )
    described["createdOn"] = version.partition("-")[0]
    entries: dict[str, Path | bytes] = {
        **parts.files,
        responder.MANIFEST: _json({**parts.manifest, "version": version}),
        _TORCHSERVE_MANIFEST: _json(described),
    }
    target = folder / file_name(parts.name, version)
    with open(target, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, source in sorted(entries.items()):
                _add(archive, name, source)
        file.flush()
        os.fsync(file.fileno())
    return target


def read_manifest(archive: Path) -> dict[str, Any]:
    """Read the manifest of an archive, without unpacking it.

    Raises:
        ArtifactError: It is no archive of ours.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            manifest: dict[str, Any] = json.loads(opened.read(responder.MANIFEST))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as cause:
        raise ArtifactError(
            f"this is not an archive of a model: {cause}",
            where=archive,
            remedy="deploy the run again",
        ) from None
    return manifest


def _verdict(path: Path, index: Artifact, *, force: bool) -> dict[str, Any]:
    """Return the gate's verdict on this very index."""
    if not artifacts.exists(path):
        if not force:
            raise ArtifactError(
                "the run was never judged",
                where=path,
                remedy="run `arcloop evaluate`, or deploy it all the same with force=true",
            )
        return {"passed": False, "reasons": ["The run was never judged."]}
    evaluation = artifacts.load(path, "evaluation")
    _require_parent(evaluation, "index", index.sha256)
    gate = json.loads((path / "gate.json").read_bytes())
    if gate["passed"] is not True and not force:
        raise ArtifactError(
            "the gate did not pass: " + " ".join(gate["reasons"]),
            where=path / "gate.json",
            remedy="train a better model, or deploy it all the same with force=true",
        )
    return {"passed": gate["passed"], "reasons": list(gate["reasons"])}


def _require_parent(artifact: Artifact, parent: str, sha256: str) -> None:
    if artifact.parents[parent] != sha256:
        raise ArtifactError(
            f"the {artifact.kind} is of another {parent}",
            where=artifact.path,
            remedy="run `arcloop index`, then `arcloop evaluate`",
        )


def _add(archive: zipfile.ZipFile, name: str, source: Path | bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980-01-01
    entry.external_attr = 0o644 << 16
    if isinstance(source, bytes):
        archive.writestr(entry, source)
        return
    entry.file_size = source.stat().st_size  # decides on zip64
    with open(source, "rb") as file, archive.open(entry, "w") as packed:
        shutil.copyfileobj(file, packed, 1 << 20)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

"""Selects the model file of an archive: model.pt, or a file that `arcloop export` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError
from arcloop.export import CompiledFormat, OnnxFormat, OnnxFp16Format, OnnxInt8Format
from arcloop.export.run import golden_file
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.runtimes import FILES, TORCHSCRIPT, load_runtime
from arcloop.runtime.searcher import MODEL, Model, SearcherError
from arcloop.serving.settings import DeploySettings

_FASTEST = "onnxruntime"
_EXPORTS = {
    chosen.file: chosen.name
    for chosen in (OnnxFormat, OnnxFp16Format, OnnxInt8Format, CompiledFormat)
}
"""File -> choice of the config group `export` that writes it."""


@dataclass(frozen=True)
class ModelFile:
    """The model of an archive.

    Attributes:
        facts: Section "runtime" of the archive's manifest: name of the runtime, sizes of the model,
            and for an exported file the properties that were recorded at its export.
        files: Name in the archive -> (file, sha256): model.pt, the file that is executed, and the
            golden batch with the embeddings that it must give.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, tuple[Path, str]]


def find_model(run: Artifact, settings: DeploySettings) -> ModelFile:
    """Return the model file of the runtime in `deploy.runtime`.

    "auto" is ONNX Runtime if the run has a model.onnx, ONNX Runtime is installed and its embeddings
    of the golden batch are right, and if the server has no GPU; otherwise TorchScript. The choice
    does not depend on measured times, so the same run gives the same archive.

    Args:
        run: The verified run.
        settings: Runtime, tolerance, and GPUs of the target.

    Raises:
        ArtifactError: The export is damaged or was made from another model.
        ConfigError: The run was not exported to the format of the runtime.
    """
    sizes = Model(run.path / MODEL).sizes()
    if settings.runtime == "auto":
        return _find_fastest(run, settings, sizes)
    if settings.runtime == TORCHSCRIPT:
        return _torchscript(run, sizes)
    return _exported(run, settings.runtime, sizes)


def _torchscript(run: Artifact, sizes: Mapping[str, Any]) -> ModelFile:
    files = {name: (run.path / name, run.file_sha256(name)) for name in (MODEL, GOLDEN)}
    return ModelFile({"name": TORCHSCRIPT, **sizes}, files)


def _find_fastest(run: Artifact, settings: DeploySettings, sizes: Mapping[str, Any]) -> ModelFile:
    on_gpu = settings.target == "local" and torch.cuda.is_available()
    if getattr(settings, "gpus", 0) or on_gpu:
        return _torchscript(run, sizes)
    try:
        if not _is_exported(run, _FASTEST):
            return _torchscript(run, sizes)
        found = _exported(run, _FASTEST, sizes)
        _require_parity(run, found, settings.parity_tolerance)
    except (SearcherError, ArtifactError) as cause:
        print_line(f"runtime: {TORCHSCRIPT}, because {FILES[_FASTEST]} cannot be used: {cause}")
        return _torchscript(run, sizes)
    return found


def _is_exported(run: Artifact, runtime: str) -> bool:
    folder = run.path / "export"
    return artifacts.exists(folder) and FILES[runtime] in artifacts.read(folder, "export").files


def _exported(run: Artifact, runtime: str, sizes: Mapping[str, Any]) -> ModelFile:
    folder, name = run.path / "export", FILES[runtime]
    remedy = f"run `arcloop export run_dir={run.path} export={_EXPORTS[name]}`"
    if not _is_exported(run, runtime):
        raise ConfigError(
            f"deploy.runtime={runtime} needs {name}, which the run does not have",
            where=folder,
            remedy=f"{remedy}, or choose deploy.runtime=auto",
        )
    export = artifacts.load(folder, "export")
    if export.parents["model"] != run.file_sha256(MODEL):
        raise ArtifactError(f"{name} was made from another model", where=folder, remedy=remedy)
    # `evaluate.gate.versus` compares with model.pt of the archive.
    files = {MODEL: (run.path / MODEL, run.file_sha256(MODEL))}
    files[name] = (folder / name, export.file_sha256(name))
    golden = golden_file(name)
    if golden in export.files:  # a compact file has its own embeddings
        files[GOLDEN] = (folder / golden, export.file_sha256(golden))
    else:
        files[GOLDEN] = (run.path / GOLDEN, run.file_sha256(GOLDEN))
    return ModelFile({"name": runtime, **sizes, **export.info[name]}, files)


def _require_parity(run: Artifact, found: ModelFile, tolerance: float) -> None:
    """Raise SearcherError if the model cannot be loaded or differs on the golden batch."""
    (path, _) = found.files[FILES[found.facts["name"]]]
    described = {"runtime": found.facts, "parents": {"model": run.file_sha256(MODEL)}}
    model = load_runtime(path.parent, described, "cpu", threads=1)
    with np.load(run.path / GOLDEN) as golden:
        difference = np.abs(model.embed(golden["images"]) - golden["embeddings"]).max()
    if not difference <= tolerance:
        raise SearcherError(f"its embeddings differ by {difference:.1e} from those of the model")

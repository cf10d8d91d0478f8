"""Export of a finished run to other formats, each checked against the eager model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import write_artifact
from arcloop.data import Store
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError
from arcloop.export.compact import CompactFormat, OnnxInt8Format
from arcloop.export.compiled import CompiledFormat
from arcloop.export.formats import Embeddings, Format, Images
from arcloop.export.retrieval_loss import check_losses
from arcloop.export.torchscript import for_inference
from arcloop.models import Embedder
from arcloop.models.embedder import make_embedder
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.runtimes import compiled_for
from arcloop.runtime.searcher import MODEL, Model


def dry_run_formats(embedder: Embedder, formats: Mapping[str, Format]) -> None:
    """Export an untrained embedder to temporary files, so that failures occur before training.

    Raises:
        ConfigError: A format cannot express the embedder's computation.
    """
    eager = for_inference(embedder)
    with tempfile.TemporaryDirectory() as folder:
        for chosen in formats.values():
            if not isinstance(chosen, CompiledFormat):  # compiling takes minutes
                chosen.write(eager, Path(folder) / chosen.file)


def export_run(
    run_dir: Path,
    formats: Mapping[str, Format],
    output: Path,
    *,
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
    store: Path | None = None,
    reuse: bool = False,
) -> Artifact:
    """Export the model of a run to other formats and check each on golden.npz.

    Each file is loaded again and embeds the images of golden.npz. The embeddings must equal those
    of the eager model up to the format's `max_abs_diff`. A compact format must also keep its
    bounds on the query split; its own embeddings of golden.npz are written next to the file.

    Args:
        run_dir: Folder of a finished `run`.
        formats: Name -> format.
        output: Folder of the `export` to write.
        backbone: Makes the run's backbone, see `make_backbone`.
        embedder: Makes the run's embedder from a backbone and `image_shape`.
        store: The store of the run, which compact formats need; None if it was not found.
        reuse: Return the artifact at `output` if it has the same model and settings.

    Raises:
        ArtifactError: The run is damaged, the embeddings of a file differ, a loss exceeds its
            bound, or there is no store.
        ConfigError: A format cannot express the model's computation.
    """
    artifacts.load(run_dir, "run")
    model = Model(run_dir / MODEL)
    config = {"export": {name: asdict(chosen) for name, chosen in formats.items()}}
    parents = {"model": model.sha256}
    compact = [chosen for chosen in formats.values() if isinstance(chosen, CompactFormat)]
    images = _require_store(store, compact[0].name) if compact else None
    if images:
        parents["store"] = images.artifact.sha256
    if reuse and (current := artifacts.load_if_current(output, "export", config, parents)):
        return current
    eager = _load_eager(run_dir, model, backbone, embedder)
    with (
        np.load(run_dir / GOLDEN) as golden,
        write_artifact(output, "export", config=config, parents=parents) as writer,
    ):
        for chosen in formats.values():
            file = writer.path / chosen.file
            found_ND, writer.info[chosen.file] = _write_checked(chosen, eager, file, golden, images)
            if isinstance(chosen, CompactFormat):
                np.savez(
                    writer.path / golden_file(chosen.file),
                    images=golden["images"],
                    embeddings=found_ND,
                )
        if images:
            measured = check_losses(run_dir, writer.path, compact, model, images)
            for name, losses in measured.items():
                writer.info[name] |= losses
    return artifacts.load(output, "export")


def golden_file(file: str) -> str:
    """Return the name of the golden batch with the embeddings of a compact file.

    >>> golden_file("model.int8.onnx")
    'model.int8.golden.npz'
    """
    return f"{Path(file).stem}.golden.npz"


def _require_store(store: Path | None, name: str) -> Store:
    if store is None:
        raise ArtifactError(
            "the store of the run was not found, and the format is checked on its query split",
            where=f"export={name}",
            remedy="run `arcloop prepare` with the overrides of the run, in the directory where it"
            " was trained",
        )
    return Store.open(store)


def _load_eager(
    run_dir: Path,
    model: Model,
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
) -> Embedder:
    """Return the embedder of the run's config with the weights of model.pt."""
    try:
        eager = for_inference(make_embedder(backbone, embedder, model.image_shape))
        scripted = torch.jit.load(str(run_dir / MODEL), "cpu")  # type: ignore[no-untyped-call]
        eager.load_state_dict(scripted.state_dict())
    except (RuntimeError, ConfigError) as cause:
        raise ArtifactError(
            f"model.pt does not fit the backbone in the run's config: {cause}",
            where=run_dir / MODEL,
            remedy="export with the arcloop version in the manifest of the run",
        ) from cause
    return eager


def _write_checked(
    chosen: Format, eager: Embedder, file: Path, golden: Mapping[str, Any], images: Store | None
) -> tuple[Embeddings, dict[str, Any]]:
    """Write a file and compare it with the golden batch; returns its embeddings and properties."""
    calibration_NCHW = None
    if isinstance(chosen, OnnxInt8Format) and images:
        calibration_NCHW = _calibration_images(images, chosen.calibration_images)
    chosen.write(eager, file, calibration_NCHW)
    found_ND = chosen.embed(file, _channels_first(golden["images"]))
    difference = float(np.abs(found_ND - golden["embeddings"]).max())
    if not difference <= chosen.max_abs_diff:
        raise ArtifactError(
            f"{chosen.file} differs from the model by {difference:.2e}, "
            f"more than {chosen.max_abs_diff:.0e}",
            where=f"export={chosen.name}",
            remedy="find the layer that computes different values in this format;"
            " model.pt is correct",
        )
    print_line(f"{chosen.file}: within {difference:.1e} of the model")
    versions = {package: version(package) for package in chosen.packages}
    facts = {"max_abs_diff": difference, "bytes": file.stat().st_size, **versions}
    if isinstance(chosen, CompiledFormat):
        facts["requires"] = compiled_for()
    return found_ND, facts


def _calibration_images(images: Store, count: int) -> Images:
    """Return evenly spaced images of the val split, uint8 [count, C, H, W]."""
    rows = np.unique(np.linspace(0, images.rows("val") - 1, count).astype(np.int64))
    return _channels_first(images.gather("val", rows)[0])


def _channels_first(images_NHWC: Images) -> Images:
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))

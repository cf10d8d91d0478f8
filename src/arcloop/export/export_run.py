"""A finished run -> the artifact `export`: model.pt in other formats, each proven equal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from arcloop import artifacts
from arcloop.artifacts import Artifact, writer
from arcloop.display.terminal import say
from arcloop.errors import ArcloopError, ArtifactError, ConfigError
from arcloop.export.formats import Format, TorchScript
from arcloop.export.torchscript import GOLDEN, for_inference
from arcloop.models import Embedder
from arcloop.models.building import make_embedder
from arcloop.runtime.searcher import MODEL, Model

Exports = Mapping[str, TorchScript | Format | None]
"""The config group `export`: name -> what to make; None is left out."""


def beside(exports: Exports) -> dict[str, Format]:
    """Return those that are made beside model.pt.

    Raises:
        ConfigError: One of them cannot be made here: a package is missing, or a value is wrong.
    """
    formats = {name: f for name, f in exports.items() if isinstance(f, Format)}
    for chosen in formats.values():
        chosen.require()
    return formats


def some_beside(exports: Exports) -> dict[str, Format]:
    """Return those that are made beside model.pt, at least one; see `beside`.

    Raises:
        ConfigError: There is none.
    """
    formats = beside(exports)
    if not formats:
        raise ConfigError(
            "there is nothing to export: model.pt is in the run already",
            where="export",
            remedy="choose a format, e.g. export=onnx or export=torch_export",
        )
    return formats


def try_formats(embedder: Embedder, formats: Mapping[str, Format]) -> None:
    """Export an untrained embedder and throw the files away: what cannot be, is told now.

    Raises:
        ConfigError: A format cannot express what the embedder computes.
    """
    ready = for_inference(embedder)
    with tempfile.TemporaryDirectory() as folder:
        for chosen in formats.values():
            chosen.write(ready, Path(folder) / chosen.file)


def export_run(
    run_dir: Path,
    formats: Mapping[str, Format],
    output: Path,
    *,
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
    reuse: bool = False,
) -> Artifact:
    """Write a run's model in other formats, and hold each against the golden batch.

    Each file is read anew and embeds the images of golden.npz; the embeddings must be those that
    the eager model gave when model.pt was made.

    Args:
        run_dir: Folder of a sealed `run`.
        formats: Name -> format.
        output: Folder of the `export` to write.
        backbone: Makes the run's backbone, see `make_backbone`.
        embedder: Makes the run's embedder from a backbone and `image_shape`.
        reuse: Return what is at `output` if it was made of the same model with these settings.

    Raises:
        ArtifactError: The run is damaged, or a file computes something else.
        ConfigError: A format cannot express what the model computes.
    """
    artifacts.load(run_dir, "run")
    model = Model(run_dir / MODEL)
    config = {"export": {name: asdict(chosen) for name, chosen in formats.items()}}
    parents = {"model": model.sha256}
    if reuse and (current := artifacts.current(output, "export", config, parents)):
        return current
    trained = _trained(run_dir / MODEL, model.image_shape, backbone, embedder)
    with (
        np.load(run_dir / GOLDEN) as golden,
        writer.writing(output, "export", config=config, parents=parents) as draft,
    ):
        for name, chosen in formats.items():
            file = draft.path / chosen.file
            chosen.write(trained, file)
            found_ND, expected_ND = chosen.embed(file, golden["images"]), golden["embeddings"]
            difference = float(np.abs(found_ND - expected_ND).max())
            if not difference <= chosen.max_abs_diff:
                raise ArtifactError(
                    f"{chosen.file} differs from the model by {difference:.2e}, "
                    f"more than {chosen.max_abs_diff:.0e}",
                    where=f"export={name}",
                    remedy="find the layer that computes something else there; model.pt is right",
                )
            say(f"{chosen.file}: within {difference:.1e} of the model")
            draft.info[chosen.file] = {"max_abs_diff": difference, **chosen.made_with()}
    return artifacts.load(output, "export")


def export_trained(
    run_dir: Path,
    formats: Mapping[str, Format],
    *,
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
) -> None:
    """Export a run that was just trained: whatever happens, it is whole, and its error says so.

    Raises:
        ArcloopError: An export failed.
    """
    try:
        export_run(
            run_dir, formats, run_dir / "export", backbone=backbone, embedder=embedder, reuse=True
        )
    except ArcloopError as cause:
        raise type(cause)(
            f"the run is trained and whole, but not all of it was exported: {cause.what}",
            where=cause.where,
            remedy=f"{cause.remedy}; then `arcloop export run_dir={run_dir} export=...`,"
            " which trains nothing",
        ) from cause


def _trained(
    model: Path,
    image_shape: tuple[int, int, int],
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
) -> Embedder:
    """Make the eager embedder with the weights of model.pt."""
    try:
        made = make_embedder(backbone, embedder, image_shape)
        scripted = torch.jit.load(str(model), map_location="cpu")  # type: ignore[no-untyped-call]
        made.load_state_dict(scripted.state_dict())
    except (RuntimeError, ConfigError) as cause:
        raise ArtifactError(
            f"model.pt is not of the backbone that the run's config describes: {cause}",
            where=model,
            remedy="export with the version of arcloop that trained it; see the run's manifest",
        ) from cause
    return for_inference(made)

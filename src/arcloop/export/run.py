"""Export of a finished run to other formats, each checked against the eager model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import write_artifact
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError
from arcloop.export.formats import Format
from arcloop.export.torchscript import for_inference
from arcloop.models import Embedder
from arcloop.models.embedder import make_embedder
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.searcher import MODEL, Model


def dry_run_formats(embedder: Embedder, formats: Mapping[str, Format]) -> None:
    """Export an untrained embedder to temporary files, so that failures occur before training.

    Raises:
        ConfigError: A format cannot express the embedder's computation.
    """
    eager = for_inference(embedder)
    with tempfile.TemporaryDirectory() as folder:
        for chosen in formats.values():
            chosen.write(eager, Path(folder) / chosen.file)


def export_run(
    run_dir: Path,
    formats: Mapping[str, Format],
    output: Path,
    *,
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
    reuse: bool = False,
) -> Artifact:
    """Export the model of a run to other formats and check each on golden.npz.

    Each file is loaded again and embeds the images of golden.npz. The embeddings must equal those
    of the eager model up to the format's `max_abs_diff`.

    Args:
        run_dir: Folder of a finished `run`.
        formats: Name -> format.
        output: Folder of the `export` to write.
        backbone: Makes the run's backbone, see `make_backbone`.
        embedder: Makes the run's embedder from a backbone and `image_shape`.
        reuse: Return the artifact at `output` if it has the same model and settings.

    Raises:
        ArtifactError: The run is damaged, or the embeddings of a file differ.
        ConfigError: A format cannot express the model's computation.
    """
    artifacts.load(run_dir, "run")
    model = Model(run_dir / MODEL)
    config = {"export": {name: asdict(chosen) for name, chosen in formats.items()}}
    parents = {"model": model.sha256}
    if reuse and (current := artifacts.load_if_current(output, "export", config, parents)):
        return current
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
    with (
        np.load(run_dir / GOLDEN) as golden,
        write_artifact(output, "export", config=config, parents=parents) as writer,
    ):
        images_NCHW = np.ascontiguousarray(golden["images"].transpose(0, 3, 1, 2))
        for name, chosen in formats.items():
            file = writer.path / chosen.file
            chosen.write(eager, file)
            found_ND = chosen.embed(file, images_NCHW)
            difference = float(np.abs(found_ND - golden["embeddings"]).max())
            if not difference <= chosen.max_abs_diff:
                raise ArtifactError(
                    f"{chosen.file} differs from the model by {difference:.2e}, "
                    f"more than {chosen.max_abs_diff:.0e}",
                    where=f"export={name}",
                    remedy="find the layer that computes different values in this format;"
                    " model.pt is correct",
                )
            print_line(f"{chosen.file}: within {difference:.1e} of the model")
            versions = {package: version(package) for package in chosen.packages}
            writer.info[chosen.file] = {"max_abs_diff": difference, **versions}
    return artifacts.load(output, "export")

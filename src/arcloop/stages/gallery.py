"""Gallery split + model.pt -> embeddings on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.config import EmbedSettings
from arcloop.data import Store
from arcloop.retrieval import load_model, write_gallery


def embed_gallery(
    model: Path, store: Path, output: Path, settings: EmbedSettings, *, reuse: bool = False
) -> Artifact:
    """Embed the gallery split through model.pt alone.

    Args:
        model: model.pt.
        store: Folder of a `store`.
        output: Folder of the `gallery` to write.
        settings: Batch size, rows a file, device.
        reuse: Return what is at `output` if it was made of the same parts with these settings.

    Raises:
        ArtifactError: Model or store is missing or damaged.
    """
    images = Store.open(store)
    embedder = load_model(model, settings.device)
    config = {"embed": asdict(settings)}
    parents = {"model": embedder.sha256, "store": images.artifact.sha256}
    if reuse and (current := artifacts.current(output, "gallery", config, parents)):
        return current
    return write_gallery(
        embedder,
        images.batches("gallery", settings.batch_size),
        output,
        rows=images.rows("gallery"),
        shard_rows=settings.shard_rows,
        config=config,
        parents=parents,
    )

"""Gallery split + model.pt -> embeddings on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import ResourceError
from arcloop.retrieval import load_model, write_gallery


def embed_gallery(
    model: Path,
    store: Path,
    output: Path,
    settings: EmbedSettings,
    *,
    reuse: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Artifact:
    """Embed the gallery split through model.pt alone.

    Args:
        model: model.pt.
        store: Folder of a `store`.
        output: Folder of the `gallery` to write.
        settings: Batch size, rows a file, device.
        reuse: Return what is at `output` if it was made of the same parts with these settings.
        group: Processes that embed the gallery together.

    Raises:
        ArtifactError: Model or store is missing or damaged.
        ResourceError: Another process's files cannot be seen here.
    """
    group.barrier()  # rank zero may have been writing model.pt until now
    if group.rank and not model.is_file():
        raise ResourceError(
            f"rank {group.rank} does not see the model.pt that rank 0 has written",
            where=model,
            remedy="put run_dir on storage that all nodes share, or train with"
            " callbacks=export_only and embed, index and evaluate afterwards",
        )
    images = Store.open(store)
    embedder = load_model(model, settings.device)
    config = {"embed": asdict(settings)}
    parents = {"model": embedder.sha256, "store": images.artifact.sha256}
    if reuse and (current := artifacts.load_if_current(output, "gallery", config, parents)):
        return current
    rows = images.rows("gallery")
    part = group.shard(rows, settings.batch_size)
    return write_gallery(
        embedder,
        images.batches("gallery", settings.batch_size, part),
        output,
        rows=rows,
        shard_rows=settings.shard_rows,
        config=config,
        parents=parents,
        part=part,
        group=group,
    )

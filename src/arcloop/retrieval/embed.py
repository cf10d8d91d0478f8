"""Images -> embeddings through model.pt alone, kept as sharded .npy files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.errors import ArtifactError, ConfigError
from arcloop.progress import track
from arcloop.searcher import Model, SearcherError

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def load_model(path: Path, device: str) -> Model:
    """Load model.pt for inference.

    Args:
        path: model.pt.
        device: A torch device, or "auto": cuda when there, else cpu.

    Raises:
        ArtifactError: It is missing or not a scripted model.
        ConfigError: There is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"embed.device={device}, but no GPU is visible", remedy="use embed.device=auto"
        )
    if not path.is_file():
        raise ArtifactError("there is no model.pt", where=path.parent, remedy="train first")
    try:
        return Model(path, device)
    except SearcherError as cause:
        raise ArtifactError(str(cause), where=path, remedy="export the run again") from None


def embed(
    model: Model, batches: Iterable[tuple[Images, Labels]]
) -> Iterator[tuple[Embeddings, Labels]]:
    """Embed batches of images as they come.

    Args:
        model: The scripted embedder.
        batches: uint8 [N, H, W, C] images with int64 [N] labels, N bounded by the caller.

    Yields:
        float32 [N, D] embeddings of norm 1, with their labels.
    """
    for images_NHWC, labels in batches:
        yield model.embed(images_NHWC), labels


def write_gallery(
    model: Model,
    batches: Iterable[tuple[Images, Labels]],
    output: Path,
    *,
    rows: int,
    shard_rows: int,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
) -> Artifact:
    """Embed the gallery and write it as a `gallery` artifact.

    Memory is bounded by one shard, whatever the batch size and the number of rows.

    Args:
        model: The scripted embedder.
        batches: As for `embed`.
        output: Folder to write.
        rows: Number of images in all.
        shard_rows: Rows in an embeddings-*.npy; the last may be shorter.
        config: Settings to record.
        parents: Hashes of what it is made from; "model" is added.

    Raises:
        ResourceError: The folder cannot be written.
    """
    parents = {**parents, "model": model.sha256}
    with (
        artifacts.writing(output, "gallery", config=config, parents=parents) as draft,
        track("embed gallery", rows) as advance,
    ):
        pending: list[tuple[Embeddings, Labels]] = []
        held = shard = 0
        for embeddings, labels in embed(model, batches):
            advance(len(labels))
            while held + len(labels) >= shard_rows:
                take = shard_rows - held
                pending.append((embeddings[:take], labels[:take]))
                _write_shard(draft.path, shard, pending)
                embeddings, labels = embeddings[take:], labels[take:]
                pending, held, shard = [], 0, shard + 1
            pending.append((embeddings, labels))
            held += len(labels)
        if held:
            _write_shard(draft.path, shard, pending)
        draft.count = rows
        draft.info |= {"rows": rows, "embedding_dim": model.embedding_dim}
    return artifacts.load(output, "gallery")


def _write_shard(folder: Path, number: int, parts: list[tuple[Embeddings, Labels]]) -> None:
    np.save(folder / f"embeddings-{number:05d}.npy", np.concatenate([e for e, _ in parts]))
    np.save(folder / f"labels-{number:05d}.npy", np.concatenate([label for _, label in parts]))


class Gallery:
    """The embeddings of a gallery on disk, read shard by shard.

    Args:
        path: Folder of a `gallery` artifact.

    Raises:
        ArtifactError: It is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.artifact = artifacts.load(path, "gallery")
        self.rows = int(self.artifact.info["rows"])
        self.embedding_dim = int(self.artifact.info["embedding_dim"])
        self.model_sha256 = self.artifact.parents["model"]

    @cached_property
    def labels(self) -> Labels:
        """The label of every row, int64 [rows]."""
        return np.concatenate([np.load(file) for file in self._files("labels")])

    def chunks(self) -> Iterator[tuple[Embeddings, Labels]]:
        """Yield (float32 [n, D], int64 [n]) in row order, one shard in memory at a time."""
        for embeddings, labels in zip(
            self._files("embeddings"), self._files("labels"), strict=True
        ):
            yield np.load(embeddings), np.load(labels)

    def _files(self, stem: str) -> list[Path]:
        return sorted(self.artifact.path.glob(f"{stem}-*.npy"))

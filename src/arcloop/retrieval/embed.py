"""Embeds images with model.pt and stores the embeddings of the gallery as sharded .npy files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import write_artifact
from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.runtime.searcher import Model, SearcherError

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Chunks = Callable[[], Iterable[tuple[Embeddings, Labels]]]
"""Returns an iterator over (embeddings [n, D], labels [n]) of a gallery, in row order."""

_CHUNK_ROWS = 8192  # the number of rows that exact_search reads at a time


def load_model(path: Path, device: str) -> Model:
    """Load model.pt for inference on large batches.

    Args:
        path: model.pt.
        device: A torch device, or "auto": cuda if available, else cpu.

    Raises:
        ArtifactError: The file is missing or not a scripted model.
        ConfigError: The device is not available.
    """
    device = choose_device(device)
    if not path.is_file():
        raise ArtifactError("there is no model.pt", where=path.parent, remedy="train first")
    try:
        return Model(path, device)
    except SearcherError as cause:
        raise ArtifactError(str(cause), where=path, remedy="export the run again") from None


def choose_device(device: str) -> str:
    """Return a device, or for "auto" cuda if it is available, else cpu.

    Raises:
        ConfigError: The device does not exist or is not available.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(
            f"device={device} is no device of torch", remedy="use auto, cpu or cuda"
        ) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}, but no GPU is visible", remedy="use device=auto")
    return device


def embed(
    model: Model,
    batches: Iterable[tuple[Images, Labels]],
    quality: list[npt.NDArray[np.float32]] | None = None,
) -> Iterator[tuple[Embeddings, Labels]]:
    """Embed a stream of batches of images.

    Args:
        model: The scripted embedder.
        batches: uint8 [N, H, W, C] images with int64 [N] labels.
        quality: If the model has quality, that of each batch is appended to this list, float32 [N].

    Yields:
        float32 [N, D] embeddings of norm 1, with their labels.
    """
    for images_NHWC, labels in batches:
        embeddings, quality_N = model.embed_with_quality(images_NHWC)
        if quality is not None and quality_N is not None:
            quality.append(quality_N)
        yield embeddings, labels


def rebatch(
    batches: Iterable[tuple[Embeddings, Labels]], rows: int
) -> Iterator[tuple[Embeddings, Labels]]:
    """Yield the rows of a stream of (embeddings, labels) in batches of `rows`; the last is shorter.

    >>> one = np.zeros((3, 2), np.float32), np.arange(3)
    >>> [labels.tolist() for _, labels in rebatch([one, one], 4)]
    [[0, 1, 2, 0], [1, 2]]
    """
    pending: list[tuple[Embeddings, Labels]] = []
    count = 0
    for embeddings, labels in batches:
        while len(labels) >= rows - count:
            take = rows - count
            yield _concatenate([*pending, (embeddings[:take], labels[:take])])
            embeddings, labels = embeddings[take:], labels[take:]
            pending, count = [], 0
        if len(labels):
            pending.append((embeddings, labels))
            count += len(labels)
    if pending:
        yield _concatenate(pending)


def _concatenate(parts: list[tuple[Embeddings, Labels]]) -> tuple[Embeddings, Labels]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([e for e, _ in parts]), np.concatenate([label for _, label in parts])


def embed_gallery(
    model: Path,
    store: Path,
    output: Path,
    settings: EmbedSettings,
    *,
    split: str = "gallery",
    reuse: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Artifact:
    """The `embed` step: embed the gallery split, or another one, with model.pt.

    At most one shard is in memory. Each process writes its rows to files of its own in the folder
    that rank 0 created.

    Args:
        model: model.pt.
        store: Folder of a `store`.
        output: Folder of the `gallery` to write.
        settings: Batch size, rows per file, device.
        split: The split to embed.
        reuse: Return the artifact at `output` if it has the same parents and settings.
        group: Processes that embed the gallery together.

    Raises:
        ArtifactError: The model or the store is missing or damaged.
        ResourceError: The files of rank 0 are not visible to this process.
    """
    group.barrier()  # wait until rank 0 has written model.pt
    if group.rank and not model.is_file():
        raise ResourceError(
            f"rank {group.rank} cannot read the model.pt that rank 0 has written",
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
    rows = images.rows(split)
    part = group.shard(rows, settings.batch_size)

    def write_part() -> None:
        batches = images.batches(split, settings.batch_size, part)
        with track(f"embed {split}", len(part)) as advance:
            # The number of the first file is not less than that of any file of a lower rank.
            first = part.start // settings.shard_rows + group.rank
            write_shards(
                folder, counted(embed(embedder, batches), advance), settings.shard_rows, first
            )

    if group.rank:
        folder = Path(group.broadcast(lambda: ""))
        group.gather(write_part)
    else:
        with write_artifact(output, "gallery", config=config, parents=parents) as writer:
            folder = Path(group.broadcast(lambda: str(writer.path.absolute())))
            group.gather(write_part)
            writer.count = rows
            writer.info |= {"rows": rows, "embedding_dim": embedder.embedding_dim}
    group.barrier()  # wait until rank 0 has written the artifact
    return artifacts.load(output, "gallery")


def counted(
    batches: Iterable[tuple[Embeddings, Labels]], advance: Callable[[int], None]
) -> Iterator[tuple[Embeddings, Labels]]:
    """Yield the batches, and call `advance` with the number of rows of each."""
    for embeddings, labels in batches:
        advance(len(labels))
        yield embeddings, labels


def write_shards(
    folder: Path, batches: Iterable[tuple[Embeddings, Labels]], shard_rows: int, first: int = 0
) -> None:
    """Write embeddings-*.npy and labels-*.npy, with one shard in memory at a time.

    Args:
        folder: Existing folder for the files.
        batches: Embeddings and labels, in row order.
        shard_rows: Rows per file; the last file may have fewer.
        first: Number in the names of the first files.
    """
    for number, (embeddings, labels) in enumerate(rebatch(batches, shard_rows), first):
        np.save(folder / f"embeddings-{number:05d}.npy", embeddings)
        np.save(folder / f"labels-{number:05d}.npy", labels)


class Gallery:
    """Reads the embeddings of a gallery in chunks.

    Args:
        path: Folder of a `gallery` artifact.

    Raises:
        ArtifactError: The gallery is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.artifact = artifacts.load(path, "gallery")
        self.rows = int(self.artifact.info["rows"])
        self.embedding_dim = int(self.artifact.info["embedding_dim"])
        self.model_sha256 = self.artifact.parents["model"]

    @cached_property
    def labels(self) -> Labels:
        """Label of every row, int64 [rows]."""
        return np.concatenate([np.load(file) for file in self._files("labels")])

    def chunks(self) -> Iterator[tuple[Embeddings, Labels]]:
        """Yield (float32 [n, D], int64 [n]) in row order, at most 8,192 rows at a time."""
        for files in zip(self._files("embeddings"), self._files("labels"), strict=True):
            rows = len(np.load(files[1], mmap_mode="r"))
            for start in range(0, rows, _CHUNK_ROWS):
                chunk = slice(start, start + _CHUNK_ROWS)
                # Copied, because the pages of an open memory map count as memory of the process.
                embeddings, labels = (np.array(np.load(f, mmap_mode="r")[chunk]) for f in files)
                yield embeddings, labels

    def _files(self, stem: str) -> list[Path]:
        return sorted(self.artifact.path.glob(f"{stem}-*.npy"))


def require_same_model(gallery: Gallery, model_sha256: str) -> None:
    """Check that a gallery was embedded by a model.

    Raises:
        ArtifactError: The gallery was embedded by another model.
    """
    if gallery.model_sha256 != model_sha256:
        raise ArtifactError(
            "the gallery was embedded by another model",
            where=gallery.artifact.path,
            remedy="embed the gallery again: `arcloop embed`",
        )

"""Embeds images with model.pt and stores the embeddings of the gallery as sharded .npy files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

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

_STEMS = "embeddings", "labels"
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
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"embed.device={device}, but no GPU is visible", remedy="use embed.device=auto"
        )
    if not path.is_file():
        raise ArtifactError("there is no model.pt", where=path.parent, remedy="train first")
    try:
        return Model(path, device, bulk=True)
    except SearcherError as cause:
        raise ArtifactError(str(cause), where=path, remedy="export the run again") from None


def embed(
    model: Model, batches: Iterable[tuple[Images, Labels]]
) -> Iterator[tuple[Embeddings, Labels]]:
    """Embed a stream of batches of images.

    Args:
        model: The scripted embedder.
        batches: uint8 [N, H, W, C] images with int64 [N] labels.

    Yields:
        float32 [N, D] embeddings of norm 1, with their labels.
    """
    for images_NHWC, labels in batches:
        yield model.embed(images_NHWC), labels


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
    reuse: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Artifact:
    """The `embed` step: embed the gallery split with model.pt.

    Args:
        model: model.pt.
        store: Folder of a `store`.
        output: Folder of the `gallery` to write.
        settings: Batch size, rows per file, device.
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


def write_gallery(
    model: Model,
    batches: Iterable[tuple[Images, Labels]],
    output: Path,
    *,
    rows: int,
    shard_rows: int,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    part: range | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Artifact:
    """Embed images and write them as a `gallery` artifact.

    At most one shard is in memory. Every process writes its rows into the folder that rank 0
    created. The files are the same as those written by a single process.

    Args:
        model: The scripted embedder.
        batches: As for `embed`.
        output: Folder of the artifact.
        rows: Number of images of all processes.
        shard_rows: Rows per embeddings-*.npy file; the last file may have fewer.
        config: Settings to record.
        parents: Role -> hash of a parent artifact; "model" is added.
        part: Rows that `batches` contain; None: all.
        group: Processes that embed the gallery together; each embeds its `part`.

    Raises:
        ResourceError: The folder cannot be written.
    """
    part = range(rows) if part is None else part

    def write_part() -> None:
        with track("embed gallery", len(part)) as advance:
            embedded = _counted(embed(model, batches), advance)
            _write_shards(folder, embedded, part.start, shard_rows)

    if group.rank:
        folder = Path(group.broadcast(lambda: ""))
        group.gather(write_part)
        group.barrier()  # wait until rank 0 has written the artifact
        return artifacts.load(output, "gallery")
    parents = {**parents, "model": model.sha256}
    with write_artifact(output, "gallery", config=config, parents=parents) as writer:
        folder = Path(group.broadcast(lambda: str(writer.path.absolute())))
        group.gather(write_part)
        _join_pieces(folder)
        writer.count = rows
        writer.info |= {"rows": rows, "embedding_dim": model.embedding_dim}
    group.barrier()
    return artifacts.load(output, "gallery")


def _counted(
    batches: Iterable[tuple[Embeddings, Labels]], advance: Callable[[int], None]
) -> Iterator[tuple[Embeddings, Labels]]:
    for embeddings, labels in batches:
        advance(len(labels))
        yield embeddings, labels


def _write_shards(
    folder: Path, batches: Iterable[tuple[Embeddings, Labels]], row: int, shard_rows: int
) -> None:
    """Write consecutive rows, starting with row number `row`, to one file per shard.

    If `row` is not the first row of a shard, the rows of this shard are written as a piece, which
    `_join_pieces` appends to the shard.
    """
    pending: list[tuple[Embeddings, Labels]] = []
    start = row
    for embeddings, labels in batches:
        while len(labels) >= (room := shard_rows - row % shard_rows):
            pending.append((embeddings[:room], labels[:room]))
            _write_shard(folder, start, shard_rows, pending)
            embeddings, labels = embeddings[room:], labels[room:]
            row += room
            pending, start = [], row
        pending.append((embeddings, labels))
        row += len(labels)
    if row > start:
        _write_shard(folder, start, shard_rows, pending)


def _write_shard(
    folder: Path, start: int, shard_rows: int, parts: list[tuple[Embeddings, Labels]]
) -> None:
    """Write the rows of one shard, or a piece if row number `start` is not its first row."""
    shard, first = divmod(start, shard_rows)
    for stem, arrays in zip(_STEMS, zip(*parts, strict=True), strict=True):
        # The name of a piece starts with a dot and contains its position in the shard.
        name = f".{stem}-{shard:05d}-{first:09d}.npy" if first else f"{stem}-{shard:05d}.npy"
        np.save(folder / name, np.concatenate(arrays))


def _join_pieces(folder: Path) -> None:
    """Append the pieces to their shards, with one shard in memory at a time."""
    pieces: dict[str, list[Path]] = {}
    for piece in sorted(folder.glob(".*-*-*.npy")):
        pieces.setdefault(piece.name[1:].rpartition("-")[0], []).append(piece)
    for name, files in pieces.items():
        whole = folder / f"{name}.npy"
        np.save(whole, np.concatenate([np.load(file) for file in (whole, *files)]))
        for file in files:
            file.unlink()


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
        for files in zip(*map(self._files, _STEMS), strict=True):
            rows = len(np.load(files[1], mmap_mode="r"))
            for start in range(0, rows, _CHUNK_ROWS):
                chunk = slice(start, start + _CHUNK_ROWS)
                # Copied, because the pages of an open memory map count as memory of the process.
                embeddings, labels = (np.array(np.load(f, mmap_mode="r")[chunk]) for f in files)
                yield embeddings, labels

    def _files(self, stem: str) -> list[Path]:
        return sorted(self.artifact.path.glob(f"{stem}-*.npy"))

"""Images -> embeddings through model.pt alone, kept as sharded .npy files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import write_artifact
from arcloop.display.terminal import track
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import ArtifactError, ConfigError
from arcloop.runtime.searcher import Model, SearcherError

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Chunks = Callable[[], Iterable[tuple[Embeddings, Labels]]]
"""Returns an iterator over (embeddings [n, D], labels [n]) of a gallery, in row order."""

_STEMS = "embeddings", "labels"
_CHUNK_ROWS = 8192  # as many as evaluation compares at a time, which then joins none


def load_model(path: Path, device: str) -> Model:
    """Load model.pt for inference on large batches.

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
        return Model(path, device, bulk=True)
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
    """Embed the gallery and write it as a `gallery` artifact.

    Memory is bounded by one shard, whatever the batch size and the number of rows. Every process
    writes its rows into the folder that rank zero opened; the files are those of one process.

    Args:
        model: The scripted embedder.
        batches: As for `embed`.
        output: Folder to write.
        rows: Number of images in all.
        shard_rows: Rows in an embeddings-*.npy; the last may be shorter.
        config: Settings to record.
        parents: Hashes of what it is made from; "model" is added.
        part: Which rows `batches` are; None: all.
        group: Processes that embed the gallery together, each one its `part`.

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
        group.barrier()  # until it is sealed
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
    """Write rows from `row` on, a file for each shard; of one begun elsewhere, a piece."""
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
    shard, first = divmod(start, shard_rows)
    for stem, arrays in zip(_STEMS, zip(*parts, strict=True), strict=True):
        # A piece has a hidden name, which tells where in the shard it belongs.
        name = f".{stem}-{shard:05d}-{first:09d}.npy" if first else f"{stem}-{shard:05d}.npy"
        np.save(folder / name, np.concatenate(arrays))


def _join_pieces(folder: Path) -> None:
    """Append the pieces of a shard, one shard in memory at a time."""
    pieces: dict[str, list[Path]] = {}
    for piece in sorted(folder.glob(".*-*-*.npy")):
        pieces.setdefault(piece.name[1:].rpartition("-")[0], []).append(piece)
    for name, files in pieces.items():
        whole = folder / f"{name}.npy"
        np.save(whole, np.concatenate([np.load(file) for file in (whole, *files)]))
        for file in files:
            file.unlink()


class Gallery:
    """The embeddings of a gallery on disk, read a few thousand rows at a time.

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
        """Yield (float32 [n, D], int64 [n]) in row order, at most 8,192 rows at a time."""
        for files in zip(*map(self._files, _STEMS), strict=True):
            rows = len(np.load(files[1], mmap_mode="r"))
            for start in range(0, rows, _CHUNK_ROWS):
                piece = slice(start, start + _CHUNK_ROWS)
                # Copied, and the map closed: touched pages of one count as this process's memory.
                embeddings, labels = (np.array(np.load(f, mmap_mode="r")[piece]) for f in files)
                yield embeddings, labels

    def _files(self, stem: str) -> list[Path]:
        return sorted(self.artifact.path.glob(f"{stem}-*.npy"))

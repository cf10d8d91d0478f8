"""model.pt + faiss index + labels -> answers. The one implementation behind every way to ask.

`arcloop query` and the servers all answer through this file. It imports torch, faiss, numpy and the
decoder beside it and nothing else, so it is archived with the model and runs without arcloop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from . import images

MODEL, INDEX, LABELS = "model.pt", "faiss_index.bin", "faiss_label.json"
_MODEL_FACTS = "arcloop.json"
_PRODUCT_FROM = 6


class SearcherError(RuntimeError):
    """Model, index and labels do not belong together, or one of them is damaged."""


@dataclass(frozen=True)
class Neighbour:
    """A row of the gallery and its cosine similarity to the query, in [-1, 1]."""

    row: int
    label: int
    class_name: str
    similarity: float


@dataclass(frozen=True)
class Answer:
    """What an image is: the class of its nearest gallery row, unless nothing is near enough.

    Attributes:
        label: Label of the nearest neighbour.
        class_name: Its name.
        similarity: Cosine similarity to it.
        unknown: Whether that similarity is under the calibrated threshold.
        neighbours: The k nearest, nearest first.
    """

    label: int
    class_name: str
    similarity: float
    unknown: bool
    neighbours: tuple[Neighbour, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON types."""
        return asdict(self)


class Model:
    """A scripted embedder on a device, frozen for inference.

    Args:
        path: model.pt, as written by `save_model`.
        device: A torch device, e.g. "cpu" or "cuda".
        bulk: For batches of hundreds: on a CPU, layouts that a small network takes a sixth less
            time with, where a single image takes twice as long.

    Attributes:
        image_shape: (height, width, channels) of the images it takes.
        embedding_dim: Length of an embedding.
        sha256: Hash of the file.
    """

    def __init__(self, path: Path, device: str = "cpu", *, bulk: bool = False) -> None:
        content = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.device = torch.device(device)
        facts = {_MODEL_FACTS: ""}
        try:
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=self.device, _extra_files=facts
            )
            described = json.loads(facts[_MODEL_FACTS])
            height, width, channels = described["image_shape"]
            self.embedding_dim = int(described["embedding_dim"])
        except (RuntimeError, ValueError, KeyError, TypeError) as cause:
            raise SearcherError(f"{path} is not a scripted arcloop model: {cause}") from None
        self.image_shape = (int(height), int(width), int(channels))
        module = torch.jit.freeze(module.eval())
        if bulk and self.device.type == "cpu":
            module = torch.jit.optimize_for_inference(module)
        self._module = module

    @torch.inference_mode()
    def embed(self, batch_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a batch.

        Args:
            batch_NHWC: uint8 images of `image_shape`.

        Returns:
            float32 [N, embedding_dim], each row of norm 1.
        """
        batch = torch.from_numpy(batch_NHWC).permute(0, 3, 1, 2).to(self.device)
        embeddings: torch.Tensor = self._module(batch)
        return embeddings.float().cpu().numpy()

    def decode(self, source: bytes | Path) -> npt.NDArray[np.uint8]:
        """Decode an encoded image or file to the shape the model takes.

        Raises:
            images.ImageError: It is not an image.
        """
        height, width, channels = self.image_shape
        return images.decode(source, height=height, width=width, channels=channels)


def save_model(
    module: torch.jit.ScriptModule, path: Path, *, image_shape: Sequence[int], embedding_dim: int
) -> None:
    """Write a scripted embedder with the facts that `Model` needs to use it alone.

    Args:
        module: Takes uint8 [B, C, H, W], returns float32 [B, D] of norm 1.
        path: Where to write it.
        image_shape: (height, width, channels).
        embedding_dim: D.
    """
    facts = {"image_shape": list(image_shape), "embedding_dim": embedding_dim}
    torch.jit.save(module, str(path), _extra_files={_MODEL_FACTS: json.dumps(facts)})


class Searcher:
    """Answers what an image is.

    Args:
        model: The embedder.
        index: A faiss index of inner product over the gallery's unit vectors.
        labels: faiss_label.json as a dict: label of each row, class names, threshold, model hash.

    Raises:
        SearcherError: The index was built from another model, or rows and labels differ in number.
    """

    def __init__(self, model: Model, index: Any, labels: dict[str, Any]) -> None:
        if labels["model_sha256"] != model.sha256:
            raise SearcherError(
                "the index was built from another model: "
                f"{labels['model_sha256'][:12]}..., not {model.sha256[:12]}..."
            )
        if index.ntotal != len(labels["labels"]):
            raise SearcherError(f"{index.ntotal} rows but {len(labels['labels'])} labels")
        self.model = model
        self.index = index
        self.classes: list[str] = labels["classes"]
        self.labels = np.asarray(labels["labels"], dtype=np.int64)
        self.threshold = float(labels["threshold"])

    @classmethod
    def load(
        cls,
        model: Path,
        index: Path,
        labels: Path,
        *,
        device: str = "cpu",
        memory_map: bool = False,
    ) -> Searcher:
        """Load from files; `memory_map` leaves the index on disk and reads pages as needed."""
        described = read_labels(labels)
        return cls(Model(model, device), read_index(index, memory_map=memory_map), described)

    def search(
        self, embeddings: npt.NDArray[np.float32], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return similarities and gallery rows [N, k] of the nearest, nearest first; -1 is none."""
        return search(self.index, embeddings, k)

    def answer(self, batch_NHWC: npt.NDArray[np.uint8], k: int = 5) -> list[Answer]:
        """Answer a batch of decoded images.

        Args:
            batch_NHWC: uint8 images of the model's shape.
            k: Neighbours to return; at most the number of gallery rows.
        """
        similarities, rows = self.search(self.model.embed(batch_NHWC), min(k, len(self.labels)))
        return [self._answer(s, r) for s, r in zip(similarities, rows, strict=True)]

    def _answer(self, similarities: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> Answer:
        found = [
            Neighbour(int(row), int(label), self.classes[label], float(similarity))
            for row, label, similarity in zip(rows, self.labels[rows], similarities, strict=True)
            if row >= 0
        ]
        if not found:  # an approximate index may visit only empty cells
            return Answer(-1, "unknown", -1.0, unknown=True, neighbours=())
        best = found[0]
        unknown = best.similarity < self.threshold
        return Answer(best.label, best.class_name, best.similarity, unknown, tuple(found))


def search(
    index: Any, embeddings: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Search any faiss index: similarities and rows [N, k], nearest first; row -1 is none."""
    # faiss counts queries x dimensions. By itself it scans a flat index once for each of up to a
    # thousand queries; from half a dozen on, one product for all of them is faster.
    faiss.cvar.distance_compute_blas_threshold = _PRODUCT_FROM * index.d
    similarities, rows = index.search(np.ascontiguousarray(embeddings, dtype=np.float32), k)
    return similarities, rows


def read_index(path: Path, *, memory_map: bool = False) -> Any:
    """Read a faiss index.

    Raises:
        SearcherError: The file is not one.
    """
    try:
        # IO_FLAG_MMAP alone maps inverted lists, and reads a flat or HNSW index whole.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as cause:
        raise SearcherError(f"{path} is not a faiss index: {cause}") from None


def read_labels(path: Path) -> dict[str, Any]:
    """Read faiss_label.json.

    Raises:
        SearcherError: The file is not one.
    """
    try:
        labels = json.loads(Path(path).read_bytes())
        missing = {"labels", "classes", "threshold", "model_sha256"} - labels.keys()
    except (ValueError, AttributeError) as cause:
        raise SearcherError(f"{path} is not a label file: {cause}") from None
    if missing:
        raise SearcherError(f"{path} lacks {', '.join(sorted(missing))}")
    return dict(labels)

"""Predicts the class of an image from model.pt, the faiss index and the labels.

`arcloop query` and all servers use this module. It imports only torch, faiss, numpy and the image
decoder of this package, so that its copy in an archive runs without arcloop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from . import images
from .equal_rows import EqualRows
from .prediction import Neighbour, Prediction

MODEL, INDEX = "model.pt", "faiss_index.bin"
LABELS, ROW_LABELS = "faiss_label.json", "faiss_label.npy"
_METADATA_FILE = "arcloop.json"
_MIN_BLAS_QUERIES = 6


class SearcherError(RuntimeError):
    """A file is damaged, or model, index and labels do not belong together."""


class _WithNorm(torch.nn.Module):
    """Has the method `embed_with_norm` of a scripted embedder as its only method.

    Freezing copies the weights for each method of a module.
    """

    def __init__(self, embedder: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = self.embedder.embed_with_norm(images_BCHW)
        return found


class Model:
    """A scripted embedder on a device, frozen for inference.

    The models of other runtimes are subclasses with the same methods; see `runtimes`.

    Args:
        path: model.pt, as written by `save_model`.
        device: A torch device, e.g. "cpu" or "cuda".

    Attributes:
        image_shape: (height, width, channels) of the input images.
        conversion: How images are converted to `image_shape`.
        embedding_dim: Length of an embedding.
        has_quality: Whether the norms of the features are a measure of quality.
        sha256: Hash of the file.

    Raises:
        SearcherError: The file is not a scripted arcloop model.
    """

    has_quality = False  # of the models of other runtimes

    def __init__(self, path: Path, device: str = "cpu") -> None:
        content = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.device = torch.device(device)
        extra_files = {_METADATA_FILE: ""}
        try:
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=self.device, _extra_files=extra_files
            )
            metadata = json.loads(extra_files[_METADATA_FILE])
            self._read_sizes(metadata)
            self.has_quality = bool(metadata.get("quality", False))
        except (RuntimeError, ValueError, KeyError, TypeError) as cause:
            raise SearcherError(f"{path} is not a scripted arcloop model: {cause}") from None
        if self.has_quality:
            module = torch.jit.script(_WithNorm(module))
        self._module = torch.jit.freeze(module.eval())

    def _read_sizes(self, sizes: Mapping[str, Any]) -> None:
        height, width, channels = sizes["image_shape"]
        self.image_shape = (int(height), int(width), int(channels))
        self.embedding_dim = int(sizes["embedding_dim"])
        self.conversion = images.Conversion.from_dict(sizes)

    def sizes(self) -> dict[str, Any]:
        """Return image_shape, embedding_dim and the conversion as plain JSON types."""
        return {
            "image_shape": list(self.image_shape),
            "embedding_dim": self.embedding_dim,
        } | self.conversion.as_dict()

    @torch.inference_mode()
    def embed(self, batch_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed a batch of images.

        Args:
            batch_NHWC: uint8 images [N, height, width, channels] of `image_shape`.

        Returns:
            float32 [N, embedding_dim]; each row has norm 1.
        """
        output = self._module(self._to_device(batch_NHWC))
        embeddings: torch.Tensor = output[0] if self.has_quality else output
        return embeddings.float().cpu().numpy()

    @torch.inference_mode()
    def embed_with_quality(
        self, batch_NHWC: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """Embed a batch of images, and return their quality, float32 [N], if the model has it."""
        if not self.has_quality:
            return self.embed(batch_NHWC), None
        embeddings, norms = self._module(self._to_device(batch_NHWC))
        return embeddings.float().cpu().numpy(), norms.float().cpu().numpy()

    def _to_device(self, batch_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(batch_NHWC).permute(0, 3, 1, 2).to(self.device)

    def decode(
        self, source: bytes | Path, max_pixels: int = images.MAX_PIXELS
    ) -> npt.NDArray[np.uint8]:
        """Decode encoded bytes or a file to uint8 [H, W, C] of `image_shape`; see `images.decode`.

        Raises:
            images.ImageError: The source is not an image, or is larger than `max_pixels`.
        """
        height, width, channels = self.image_shape
        return images.decode(
            source, height=height, width=width, channels=channels, max_pixels=max_pixels,
            conversion=self.conversion,
        )  # fmt: skip


def save_model(
    module: torch.jit.ScriptModule,
    path: Path,
    *,
    image_shape: Sequence[int],
    embedding_dim: int,
    conversion: images.Conversion = images.DEFAULT_CONVERSION,
    quality: bool = False,
) -> None:
    """Write a scripted embedder together with the input and output shapes that `Model` reads.

    Args:
        module: Takes uint8 [B, C, H, W] and returns float32 [B, D] of norm 1.
        path: The file to write.
        image_shape: (height, width, channels).
        embedding_dim: D.
        conversion: How images are converted to `image_shape`.
        quality: The method `embed_with_norm` returns a measure of quality.
    """
    sizes = {"image_shape": list(image_shape), "embedding_dim": embedding_dim}
    metadata = sizes | conversion.as_dict() | ({"quality": True} if quality else {})
    torch.jit.save(module, str(path), _extra_files={_METADATA_FILE: json.dumps(metadata)})


class Searcher:
    """Predicts the classes of images by nearest-neighbour search in the gallery.

    Args:
        model: The embedder.
        index: A faiss inner-product index over the unit vectors of the gallery.
        labels: Result of `read_labels`. Older files lack "calibration" and "equal_rows".

    Attributes:
        equal_rows: The gallery rows with equal embeddings.
        calibration: How the threshold was calibrated.
        threshold_facts: The threshold, and the false accept rate and the protocol of its
            calibration, which are null if an older version made the index.

    Raises:
        SearcherError: The index was built from another model, or the numbers of rows and labels
            differ.
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
        self.equal_rows = EqualRows.from_groups(labels.get("equal_rows", []))
        self.calibration: dict[str, Any] = labels.get("calibration", {})
        self.threshold_facts: dict[str, Any] = {
            "similarity": self.threshold,
            **{name: self.calibration.get(name) for name in ("far", "protocol")},
        }

    def predict(self, batch_NHWC: npt.NDArray[np.uint8], k: int = 5) -> list[Prediction]:
        """Predict the classes of a batch of decoded images.

        Args:
            batch_NHWC: uint8 images of the model's shape.
            k: Neighbours to return; limited to the number of gallery rows.

        Returns:
            A prediction for each image. Of gallery rows with equal embeddings, the lowest ones are
            returned.
        """
        embeddings, quality = self.model.embed_with_quality(batch_NHWC)
        similarities, rows = search(self.index, embeddings, min(k, len(self.labels)))
        rows = self.equal_rows.prefer_lowest(rows)
        norms = [None] * len(rows) if quality is None else quality.tolist()
        found = zip(similarities, rows, norms, strict=True)
        return [self._prediction(*one) for one in found]

    def _prediction(
        self,
        similarities: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        quality: float | None,
    ) -> Prediction:
        found = [
            Neighbour(int(row), int(label), self.classes[label], float(similarity))
            for row, label, similarity in zip(rows, self.labels[rows], similarities, strict=True)
            if row >= 0
        ]
        if not found:  # an approximate index may probe only empty cells
            return Prediction(-1, "unknown", -1.0, unknown=True, neighbours=(), quality=quality)
        best = found[0]
        unknown = best.similarity < self.threshold
        return Prediction(
            best.label, best.class_name, best.similarity, unknown, tuple(found), quality
        )


def search(
    index: Any, embeddings: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Search a faiss index.

    Args:
        index: The index.
        embeddings: Query vectors [N, D].
        k: Neighbours for each query.

    Returns:
        Similarities and rows [N, k], nearest first; row -1 marks a neighbour that was not found.
    """
    # Below this threshold, faiss scans a flat index once per query; above it, faiss computes one
    # matrix product for all queries. The unit of the threshold is queries x dimensions.
    faiss.cvar.distance_compute_blas_threshold = _MIN_BLAS_QUERIES * index.d
    similarities, rows = index.search(np.ascontiguousarray(embeddings, dtype=np.float32), k)
    return similarities, rows


def read_index(path: Path, *, memory_map: bool = False) -> Any:
    """Read a faiss index.

    Args:
        path: faiss_index.bin.
        memory_map: Leave the index on disk and read its pages as needed.

    Raises:
        SearcherError: The file is not a faiss index.
    """
    try:
        # IO_FLAG_MMAP maps only inverted lists and would read flat and HNSW indexes completely.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as cause:
        raise SearcherError(f"{path} is not a faiss index: {cause}") from None


def read_labels(path: Path) -> dict[str, Any]:
    """Read faiss_label.json, and memory-map the labels of the rows in faiss_label.npy.

    Older versions wrote the labels of the rows to faiss_label.json, too.

    Raises:
        SearcherError: A file is not a label file, or a key is missing.
    """
    try:
        labels = json.loads(path.read_bytes())
        missing = {"classes", "threshold", "model_sha256"} - labels.keys()
        if "labels" not in labels:
            path = path.with_suffix(".npy")
            labels["labels"] = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, AttributeError) as cause:
        raise SearcherError(f"{path} is not a label file: {cause}") from None
    if missing:
        raise SearcherError(f"{path} lacks {', '.join(sorted(missing))}")
    return dict(labels)

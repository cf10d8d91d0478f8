"""The faiss index over a gallery: cosine similarity, any `index_factory` string."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_json
from arcloop.config.value_types import PositiveInt, check_fields
from arcloop.display.terminal import track
from arcloop.errors import ArtifactError, ConfigError
from arcloop.retrieval.embed import Embeddings, Gallery
from arcloop.runtime.searcher import INDEX, LABELS, SearcherError, read_index, read_labels

Rows = npt.NDArray[np.int64]
_FEWEST, _FEWEST_HELD_OUT = 39, 30
"""Training rows of a cell; 39 is what faiss asks for."""


@dataclass(frozen=True, kw_only=True)
class FaissIndex:
    """How to build an index; a choice of conf/index/.

    Args:
        factory: A faiss `index_factory` string; "{nlist}" becomes the number of cells that suits
            the gallery, 4 sqrt(rows) but at least 39 training rows a cell.
        search: faiss search parameters that are stored with the index, e.g. {"nprobe": 16}.
        train_rows: Rows of the gallery, evenly spaced, that an index with a training stage sees.

    Source:
        https://github.com/facebookresearch/faiss/wiki/The-index-factory
    """

    factory: str
    search: dict[str, int]
    train_rows: PositiveInt

    def __post_init__(self) -> None:
        check_fields(self, "index")
        self._empty(dim=64, rows=100_000)  # a misspelt factory or parameter is refused now

    def make(self, gallery: Gallery) -> tuple[Any, dict[str, Any]]:
        """Build, and tell what: "factory", the string with all its numbers, and "search".

        Raises:
            ConfigError: The gallery is too small for this index.
        """
        return self.build(gallery), self.choice(gallery)

    def choice(self, gallery: Gallery) -> dict[str, Any]:
        """Return what is built over a gallery, for its manifest."""
        return {"factory": self._factory(gallery.rows), "search": dict(self.search)}

    def build(self, gallery: Gallery, *, held_out: Rows | None = None) -> Any:
        """Train the index where it must be, and add the gallery in row order.

        Args:
            gallery: The rows to add.
            held_out: Rows that it is not trained on.

        Returns:
            A faiss index of inner product with `gallery.rows` rows.

        Raises:
            ConfigError: The gallery is too small for this index.
        """
        index = self._empty(gallery.embedding_dim, gallery.rows)
        with track("build index", gallery.rows, "vectors") as advance:
            if not index.is_trained:
                try:
                    if held_out is not None:  # a few rows fewer than what faiss warns of
                        faiss.extract_index_ivf(index).cp.min_points_per_centroid = _FEWEST_HELD_OUT
                    index.train(self._training_rows(gallery, held_out))
                except RuntimeError as cause:
                    raise ConfigError(
                        f"a gallery of {gallery.rows} rows cannot train index "
                        f"{self.factory!r}: {_first_line(cause)}",
                        remedy="use index=flat, or a larger gallery",
                    ) from None
            _reserve(index, gallery.rows)
            for embeddings, _ in gallery.chunks():
                index.add(embeddings)
                advance(len(embeddings))
        return index

    def _empty(self, dim: int, rows: int) -> Any:
        try:
            index = faiss.index_factory(dim, self._factory(rows), faiss.METRIC_INNER_PRODUCT)
            index.verbose = False
            space = faiss.ParameterSpace()
            for name, value in self.search.items():
                space.set_index_parameter(index, name, value)
        except RuntimeError as cause:
            raise ConfigError(
                f"faiss refuses index.factory={self.factory!r} with search {self.search}: "
                f"{_first_line(cause)}",
                remedy="see the faiss wiki, 'The index factory', for what a factory string may be",
            ) from None
        return index

    def _training_rows(self, gallery: Gallery, held_out: Rows | None) -> Embeddings:
        rows, embeddings = sample_rows(gallery, self.train_rows)
        return embeddings if held_out is None else embeddings[~np.isin(rows, held_out)]

    def _factory(self, rows: int) -> str:
        nlist = max(1, min(int(4 * math.sqrt(rows)), rows // _FEWEST))
        return self.factory.replace("{nlist}", str(nlist))


def write_index(
    index: Any, gallery: Gallery, folder: Path, classes: Sequence[str], threshold: float
) -> dict[str, int]:
    """Write faiss_index.bin and faiss_label.json.

    Args:
        index: Over the gallery's rows.
        gallery: What it was built from.
        folder: Where to write.
        classes: Class names by label.
        threshold: Similarity under which the answer is "unknown".

    Returns:
        Its size: {"rows": n, "bytes": of the index file}.
    """
    faiss.write_index(index, str(folder / INDEX))
    labels = {
        "labels": gallery.labels.tolist(),
        "classes": list(classes),
        "threshold": threshold,
        "model_sha256": gallery.model_sha256,
    }
    write_json(folder / LABELS, labels, indent=None)
    return {"rows": index.ntotal, "bytes": (folder / INDEX).stat().st_size}


def open_index(
    path: Path, model_sha256: str, *, memory_map: bool = False
) -> tuple[Artifact, Any, dict[str, Any]]:
    """Load an `index` artifact, its faiss index and its labels.

    Args:
        path: Its folder.
        model_sha256: Hash of the model it must have been built from.
        memory_map: Read pages of the index as needed; processes of one machine share them.

    Raises:
        ArtifactError: It is missing or damaged, or was built from another model.
    """
    artifact = artifacts.load(path, "index")
    try:
        index = read_index(path / INDEX, memory_map=memory_map)
        labels = read_labels(path / LABELS)
    except SearcherError as cause:
        raise ArtifactError(str(cause), where=path, remedy="build it again") from None
    if labels["model_sha256"] != model_sha256:
        raise ArtifactError(
            "the index was built from another model",
            where=path,
            remedy="embed the gallery and build the index again: `arcloop embed`, `arcloop index`",
        )
    return artifact, index, labels


def sample_rows(gallery: Gallery, rows: int) -> tuple[Rows, Embeddings]:
    """Return at most `rows` evenly spaced rows of a gallery: their numbers, and them [n, D]."""
    step = max(1, math.ceil(gallery.rows / rows))

    def picked() -> Iterator[Embeddings]:
        first = 0
        for embeddings, _ in gallery.chunks():
            yield embeddings[first::step]
            first = (first - len(embeddings)) % step

    return np.arange(0, gallery.rows, step, dtype=np.int64), np.concatenate(list(picked()))


def _reserve(index: Any, rows: int) -> None:
    """Make room for so many vectors at once: what grows by doubling is there twice at times."""
    flat = index.storage if isinstance(index, faiss.IndexHNSW) else index
    flat = faiss.downcast_index(flat)
    if isinstance(flat, faiss.IndexFlatCodes):
        flat.codes.resize(rows * flat.code_size)
        flat.codes.resize(0)


def _first_line(cause: Exception) -> str:
    return str(cause).rpartition(": ")[2].splitlines()[0]

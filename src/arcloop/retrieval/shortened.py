"""Shortened embeddings: the first coordinates, normalised again.

An index with `index.dim` compares shortened embeddings and takes full ones: it begins with two
transforms, a truncation and a normalisation. The threshold and all metrics are computed on
shortened embeddings too, because their similarities differ from those of full embeddings.

Shapes: N rows, D dimensions of the model, d dimensions of the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.errors import ConfigError
from arcloop.retrieval.embed import Embeddings, Gallery, Labels
from arcloop.runtime.searcher import Model, search

if TYPE_CHECKING:
    from arcloop.retrieval.auto_index import AutoIndex
    from arcloop.retrieval.index import FaissIndex


def shorten(embeddings_ND: Embeddings, dim: int) -> Embeddings:
    """Return the first `dim` coordinates with norm 1, float32 [N, d]; a zero vector stays zero.

    >>> shorten(np.array([[0.6, 0.0, 0.8]], np.float32), 2).tolist()
    [[1.0, 0.0]]
    """
    short_Nd = embeddings_ND[:, :dim]
    norm_N1 = np.linalg.norm(short_Nd, axis=1, keepdims=True)
    shortened_Nd: Embeddings = short_Nd / np.maximum(norm_N1, np.finfo(np.float32).tiny)
    return shortened_Nd


class ShortModel(Model):
    """A model whose embeddings are shortened."""

    def __init__(self, model: Model, dim: int) -> None:
        vars(self).update(vars(model))
        self.embedding_dim = dim
        self._whole = model

    def embed(self, batch_NHWC: npt.NDArray[np.uint8]) -> Embeddings:
        return self.embed_with_quality(batch_NHWC)[0]

    def embed_with_quality(
        self, batch_NHWC: npt.NDArray[np.uint8]
    ) -> tuple[Embeddings, Embeddings | None]:
        embeddings, quality = self._whole.embed_with_quality(batch_NHWC)
        return shorten(embeddings, self.embedding_dim), quality


class ShortGallery(Gallery):
    """A gallery whose embeddings are shortened.

    Raises:
        ConfigError: The embeddings are not longer than `dim`.
    """

    def __init__(self, gallery: Gallery, dim: int) -> None:
        require_shorter(dim, gallery.embedding_dim)
        vars(self).update(vars(gallery))
        self.embedding_dim = dim

    def chunks(self) -> Iterator[tuple[Embeddings, Labels]]:
        for embeddings_ND, labels_N in super().chunks():
            yield shorten(embeddings_ND, self.embedding_dim), labels_N


def dim_of(index: Artifact) -> int | None:
    """Return `index.dim` of an index; None if it compares whole embeddings."""
    dim: int | None = index.info.get("choice", {}).get("dim")
    return dim


def shorten_both(model: Model, gallery: Gallery, dim: int | None) -> tuple[Model, Gallery]:
    """Return model and gallery with shortened embeddings; unchanged if `dim` is None."""
    return (model, gallery) if dim is None else (ShortModel(model, dim), ShortGallery(gallery, dim))


def require_shorter(dim: int, embedding_dim: int) -> None:
    """Raise ConfigError unless `dim` is less than the size of an embedding."""
    if dim >= embedding_dim:
        raise ConfigError(
            f"index.dim={dim} must be less than embedder.embedding_dim={embedding_dim}",
            remedy="choose a smaller index.dim, or null for full embeddings",
        )


def build_shortened(
    builder: FaissIndex | AutoIndex, gallery: Gallery, dim: int
) -> tuple[Any, dict[str, Any]]:
    """Build an index of the shortened embeddings of a gallery that takes full embeddings.

    Args:
        builder: Builds the index of the shortened embeddings.
        gallery: The gallery with full embeddings.
        dim: d.

    Returns:
        The faiss index, and its description with "dim"; see `FaissIndex.build`.
    """
    inner, description = replace(builder, dim=None).build(ShortGallery(gallery, dim))
    whole = faiss.IndexPreTransform(faiss.NormalizationTransform(dim), inner)
    truncation = faiss.RemapDimensionsTransform(
        gallery.embedding_dim, dim, False  # type: ignore[arg-type]  # missing in the stub
    )  # fmt: skip
    whole.prepend_transform(truncation)
    return whole, description | {"dim": dim}


def search_shortened(
    index: Any, embeddings_Nd: Embeddings, k: int
) -> tuple[Embeddings, npt.NDArray[np.int64]]:
    """Search an index of `build_shortened` with embeddings that are shortened already."""
    return search(faiss.downcast_index(index.index), embeddings_Nd, k)

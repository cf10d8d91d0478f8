"""What an evaluation compares: a gallery, an index, the rows of the queries, and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from arcloop.config.evaluation import EvaluateSettings
from arcloop.data import Store
from arcloop.errors import DataError
from arcloop.evaluation.metrics.sample import sampled_rows
from arcloop.retrieval import Gallery
from arcloop.retrieval.embed import Chunks, Embeddings, Labels
from arcloop.retrieval.exclusion import Excluded, require_groups
from arcloop.retrieval.shortened import search_shortened, shorten_both
from arcloop.runtime.searcher import Model, search

Search = Callable[[Embeddings, int], tuple[Embeddings, Labels]]
"""Embeddings [B, D] and k -> similarities and gallery rows [B, k], nearest first; row -1: none."""

_GALLERY_POINTS = 6  # 1 in 6 points of the projection is a gallery row


@dataclass(frozen=True, kw_only=True)
class EvaluationSetup:
    """The gallery, the index and the settings of an evaluation.

    Attributes:
        gallery: Returns an iterator over (float32 [N, D], int64 [N]) in row order.
        gallery_labels: Class of every gallery row, int64 [G]; at least one row.
        search: The index.
        classes: Class names; a label is a position in the list.
        settings: Batch size, and limits on memory, pairs, mistakes and points.
        threshold: Similarity below which the answer is "unknown".
        num_queries: Rows of the query split, Q.
        own_rows: Leave-one-out, int64 [Q]: row of each query in the gallery, which is excluded from
            its answers and pairs; -1: none. None: no query is in the gallery.
        groups: int64 [Q], group of each query, see `QueryResults`. None: there are no groups.
        held_out: Names of the classes that were left out of training.
        gallery_groups: int64 [G], group of each gallery row. Rows of the query's group are excluded
            from its answers and pairs; -1: no group. None: they are not excluded.

    Raises:
        DataError: There are no queries, or no gallery rows to compare them with.
    """

    gallery: Chunks
    gallery_labels: Labels
    search: Search
    classes: list[str]
    settings: EvaluateSettings
    threshold: float
    num_queries: int
    own_rows: Labels | None = None
    groups: Labels | None = None
    held_out: frozenset[str] = frozenset()
    gallery_groups: Labels | None = None

    def __post_init__(self) -> None:
        if not self.num_queries:
            raise DataError("there are no queries", remedy="prepare a query split with images")
        if self.own_rows is not None and len(self.gallery_labels) < 2:
            raise DataError(
                "leave-one-out evaluation needs a gallery of at least 2 images, this one has 1",
                remedy="prepare a gallery split with more images",
            )

    def excluded(self, queries: slice) -> Excluded:
        """Return the gallery rows that are no neighbours of some of the queries."""
        none = np.full(self.num_queries, -1)
        own_rows_Q = none if self.own_rows is None else self.own_rows
        groups_Q = None if self.gallery_groups is None else self.groups
        return Excluded(own_rows_Q, groups_Q, self.gallery_groups).take(queries)

    @property
    def num_projected(self) -> tuple[int, int]:
        """Number of gallery rows and of queries in the projection, if there are that many."""
        of_gallery = self.settings.num_projected // _GALLERY_POINTS
        return of_gallery, self.settings.num_projected - of_gallery

    @property
    def sampled_queries(self) -> Labels:
        """Rows of the queries for the projection, clustering and pair accuracy."""
        count = max(self.num_projected[1], self.settings.max_clustered)
        return sampled_rows(self.num_queries, count)


def make_setup(
    images: Store,
    gallery_images: Store,
    embeddings: Gallery,
    model: Model,
    index: Any,
    dim: int | None,
    settings: EvaluateSettings,
    threshold: float,
    held_out: frozenset[str] = frozenset(),
) -> tuple[Model, EvaluationSetup, Labels]:
    """Return the model and the setup of an evaluation, and the label in it of each query class.

    Args:
        images: Store of the queries.
        gallery_images: Store of the gallery.
        embeddings: The gallery.
        model: The model that embedded it.
        index: Faiss index of the gallery.
        dim: Coordinates that the index uses, to which model and gallery are shortened; None: all.
        settings: Evaluation settings.
        threshold: Similarity below which the answer is "unknown".
        held_out: Names of the classes that were left out of training.
    """
    model, embeddings = shorten_both(model, embeddings, dim)
    # Classes that only the queries have get the last labels.
    classes = list(dict.fromkeys([*gallery_images.classes, *images.classes]))
    position = {name: label for label, name in enumerate(classes)}
    num_queries = images.rows("query")
    leave_one_out = images.leave_one_out and gallery_images is images
    setup = EvaluationSetup(
        gallery=embeddings.chunks,
        gallery_labels=embeddings.labels,
        search=partial(search_shortened if dim else search, index),
        classes=classes,
        settings=settings,
        threshold=threshold,
        num_queries=num_queries,
        own_rows=np.arange(num_queries) if leave_one_out else None,
        groups=images.groups("query"),
        held_out=held_out,
        gallery_groups=(
            require_groups(images, gallery_images) if settings.exclude_same_group else None
        ),
    )
    return model, setup, np.array([position[name] for name in images.classes], np.int64)

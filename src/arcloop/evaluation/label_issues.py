"""Finds images whose label disagrees with the labels of the nearest images.

Shapes: Q judged images, G images they are compared with, N all images, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from arcloop.evaluation.metrics.ranking import GalleryRanker
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch
from arcloop.retrieval.exclusion import Excluded

_NEIGHBOURS = 6
_QUERIES = 4096
_MEMORY_MB = 64


class LabelIssues(NamedTuple):
    """Images whose nearest image has another label.

    Attributes:
        numbers: int64 [Q], number of each image.
        nearest_other: float32 [Q], cosine similarity to the nearest image of another label.
        nearest_same: float32 [Q], cosine similarity to the nearest image of the same label.
        neighbours: int64 [Q, K], numbers of the nearest images, nearest first.
    """

    numbers: Labels
    nearest_other: Embeddings
    nearest_same: Embeddings
    neighbours: Labels

    @property
    def score(self) -> Embeddings:
        """Similarity to the nearest image of another label minus that of the same label, [Q]."""
        return self.nearest_other - self.nearest_same

    def take(self, rows: Labels) -> LabelIssues:
        """Return some of the images, in the order of `rows`."""
        columns: list[Any] = [column[rows] for column in self]
        return LabelIssues(*columns)


def find_label_issues(
    queries: Chunks,
    query_numbers_Q: Labels,
    gallery: Chunks,
    gallery_numbers_G: Labels,
    label_N: Labels,
) -> LabelIssues:
    """Return the images whose nearest image has another label.

    Args:
        queries: Returns an iterator over the embeddings of the images to judge.
        query_numbers_Q: Numbers of these images, from 0 to N - 1.
        gallery: Returns an iterator over the embeddings of the images to compare with; it contains
            an image of every label of the queries.
        gallery_numbers_G: Numbers of these images.
        label_N: Label of each of the N images.
    """
    ranker = GalleryRanker(
        gallery, label_N[gallery_numbers_G], int(label_N.max()) + 1, ndcg_at=(),
        num_neighbours=min(_NEIGHBOURS, len(gallery_numbers_G)), memory_mb=_MEMORY_MB,
        batch_size=_QUERIES,
    )  # fmt: skip
    found, start = [], 0
    for embeddings_BD, _ in rebatch(queries(), _QUERIES):
        numbers_B = query_numbers_Q[start : start + len(embeddings_BD)]
        start += len(embeddings_BD)
        none = Excluded(np.full(len(numbers_B), -1))
        _, facts = ranker.rank(embeddings_BD, label_N[numbers_B], none)
        judged = LabelIssues(
            numbers_B,
            facts["best_other"].astype(np.float32),
            facts["best_same"].astype(np.float32),
            gallery_numbers_G[facts["neighbours"]],
        )
        found.append(judged.take(np.flatnonzero(judged.score > 0)))
    return join_issues(found)


def join_issues(parts: Sequence[LabelIssues]) -> LabelIssues:
    """Join lists of issues; those with the highest score are first."""
    columns: list[Any] = [np.concatenate(column) for column in zip(*parts, strict=True)]
    joined = LabelIssues(*columns)
    return joined.take(np.lexsort((joined.numbers, -joined.score)))

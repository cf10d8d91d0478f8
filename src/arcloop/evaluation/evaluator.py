"""Evaluation of a model and its index on query embeddings, in memory independent of their number.

Each process calls `update_evaluation` on its part of the queries; `compute_evaluation` merges the
states. `evaluate_embeddings` does both in a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.config.schema import EvaluateSettings
from arcloop.errors import DataError
from arcloop.evaluation.metrics.answers import (
    AnswerMetrics,
    Confusion,
    confusion,
    exclude_own_rows,
)
from arcloop.evaluation.metrics.clustering import clustering_metrics
from arcloop.evaluation.metrics.pair_folds import pair_metrics
from arcloop.evaluation.metrics.ranking import GalleryRanker, RankingMetrics
from arcloop.evaluation.metrics.verification import SimilarityHistogram
from arcloop.evaluation.mistakes import Mistake
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch

Search = Callable[[Embeddings, int], tuple[Embeddings, Labels]]
"""Embeddings [B, D] and k -> similarities and gallery rows [B, k], nearest first; row -1: none."""

_NEIGHBOURS = 10
_GALLERY_POINTS = 6  # one of 6 points of the projection is a gallery row


class Sample:
    """Randomly sampled rows of a split.

    Args:
        chosen: Rows of the split to keep, ascending; see `sampled_rows`.
        embedding_dim: D.

    Attributes:
        parts: (embeddings [n, D], labels [n], row numbers in the split [n]) of each batch.
    """

    def __init__(self, chosen: Labels, embedding_dim: int) -> None:
        self._chosen = chosen
        empty = np.empty(0, np.int64)
        self.parts = [(np.empty((0, embedding_dim), np.float32), empty, empty)]

    def update(self, first_row: int, embeddings_BD: Embeddings, labels_B: Labels) -> None:
        """Add the chosen rows of a batch that starts at row `first_row` of the split."""
        first, last = np.searchsorted(self._chosen, [first_row, first_row + len(labels_B)])
        if last > first:
            rows = self._chosen[first:last]
            batch_rows = rows - first_row
            self.parts.append((embeddings_BD[batch_rows], labels_B[batch_rows], rows))

    def merge(self, other: Sample) -> None:
        """Add the rows of the following part of the split."""
        self.parts += other.parts

    @property
    def embeddings(self) -> Embeddings:
        """Embeddings float32 [N, D], in row order."""
        return np.concatenate([part[0] for part in self.parts])

    @property
    def labels(self) -> Labels:
        """Class of each row, int64 [N]."""
        return np.concatenate([part[1] for part in self.parts])

    @property
    def rows(self) -> Labels:
        """Row numbers in the split, int64 [N]."""
        return np.concatenate([part[2] for part in self.parts])


def sampled_rows(total: int, capacity: int) -> Labels:
    """Choose rows uniformly at random with a fixed seed.

    Each row draws a random number and the smallest are chosen, so that a smaller sample is part of
    a larger one.

    Args:
        total: Number of rows.
        capacity: Most rows to choose.

    Returns:
        int64, ascending.

    >>> sampled_rows(10, 3), sampled_rows(2, 3)
    (array([1, 2, 3]), array([0, 1]))
    """
    if capacity >= total:
        return np.arange(total)
    draws = np.random.default_rng(0).random(total)
    return np.sort(np.argpartition(draws, capacity)[:capacity])


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model and its index, and the data of the report.

    Attributes:
        metrics: Name -> finite number, without metrics that are undefined for these data.
        confusion: Counts of answers by true class.
        pairs: Similarities of query-gallery pairs of the same class and of different classes.
        mistakes: The wrong answers with the highest similarity, most similar first.
        queries: Sample of the queries, for the projection.
        queries_right: bool, whether each sampled query was answered with its class.
        gallery: Sample of the gallery, for the projection.
    """

    metrics: dict[str, float]
    confusion: Confusion
    pairs: SimilarityHistogram
    mistakes: list[Mistake]
    queries: Sample
    queries_right: npt.NDArray[np.bool_]
    gallery: Sample


@dataclass(frozen=True)
class EvaluationState:
    """Accumulated results of one part of the queries; can be pickled.

    Attributes:
        answers: Metrics of the index.
        ranking: Metrics of the exact ranking.
        projected: Sample of the queries for the projection.
        clustered: Sample of the queries for clustering and pair accuracy.
    """

    answers: AnswerMetrics
    ranking: RankingMetrics
    projected: Sample
    clustered: Sample


def evaluate_embeddings(
    queries: Iterable[tuple[Embeddings, Labels]],
    gallery: Chunks,
    search: Search,
    gallery_labels_G: Labels,
    classes: list[str],
    settings: EvaluateSettings,
    threshold: float,
    own_rows_Q: Labels | None = None,
    *,
    num_queries: int,
) -> EvaluationResult:
    """Evaluate query embeddings against a gallery and its index in a single process.

    The arguments are those of `update_evaluation`.
    """
    state = update_evaluation(
        queries, gallery, search, gallery_labels_G, classes, settings, threshold, own_rows_Q,
        num_queries=num_queries, part=range(num_queries),
    )  # fmt: skip
    return compute_evaluation([state], gallery, gallery_labels_G, classes, settings, threshold)


def update_evaluation(
    queries: Iterable[tuple[Embeddings, Labels]],
    gallery: Chunks,
    search: Search,
    gallery_labels_G: Labels,
    classes: list[str],
    settings: EvaluateSettings,
    threshold: float,
    own_rows_Q: Labels | None = None,
    *,
    num_queries: int,
    part: range,
) -> EvaluationState:
    """Search and rank the gallery for one part of the queries.

    Top-1, Recall@k, Precision@k, confusion, accuracy by class and mistakes measure the answers of
    the index. MAP@R, R-precision, MRR, nDCG, index recall, open set and ROC compare every query
    with every gallery row exactly; the ROC uses a random sample of the queries, limited by
    `settings.max_pairs`. Clustering and pair accuracy use the queries only.

    Args:
        queries: (float32 [B, D] rows of norm 1, int64 [B] labels) of the rows `part`, in order.
        gallery: Returns an iterator over (float32 [N, D], int64 [N]) in row order.
        search: The index.
        gallery_labels_G: Class of every gallery row; at least one row.
        classes: Class names; a label is a position in the list.
        settings: Batch size, and limits on memory, pairs, mistakes and points.
        threshold: Similarity below which the answer is "unknown".
        own_rows_Q: Leave-one-out: for each query of the split, the gallery row that is the query
            itself and is excluded from answers and pairs; -1: none. None: no query has one.
        num_queries: Rows of the whole query split.
        part: Rows of the query split in this part; it starts at a multiple of
            `settings.batch_size`.

    Raises:
        DataError: There are no queries, or no gallery rows to compare them with, or an embedding
            is not finite.
    """
    if not num_queries:
        raise DataError(
            "there are no queries to evaluate", remedy="prepare a non-empty query split"
        )
    if own_rows_Q is not None and len(gallery_labels_G) < 2:
        raise DataError(
            "leave-one-out evaluation needs a gallery of at least 2 images, this one has 1",
            remedy="prepare a gallery split with more images",
        )
    k = min(_NEIGHBOURS, len(gallery_labels_G))
    ranker = GalleryRanker(
        gallery, gallery_labels_G, len(classes), num_ranks=k, memory_mb=settings.memory_mb,
        batch_size=settings.batch_size,
    )  # fmt: skip
    embedding_dim = next(iter(gallery()))[0].shape[1]
    num_projected = settings.num_projected - settings.num_projected // _GALLERY_POINTS
    state = EvaluationState(
        AnswerMetrics(settings.num_mistakes, threshold),
        RankingMetrics(),
        projected=Sample(sampled_rows(num_queries, num_projected), embedding_dim),
        clustered=Sample(sampled_rows(num_queries, settings.max_clustered), embedding_dim),
    )
    compared_Q = np.zeros(num_queries, bool)
    compared_Q[sampled_rows(num_queries, max(1, settings.max_pairs // len(gallery_labels_G)))] = (
        True
    )
    row = part.start
    for embeddings_BD, labels_B in rebatch(queries, settings.batch_size):
        rows = slice(row, row + len(labels_B))
        own_rows_B = np.full(len(labels_B), -1) if own_rows_Q is None else own_rows_Q[rows]
        # One neighbour more, because the query itself is excluded.
        similarities_BK, rows_BK = search(embeddings_BD, k + (own_rows_Q is not None))
        similarities_BK, rows_BK = exclude_own_rows(similarities_BK, rows_BK, own_rows_B, k)
        labels_BK = np.where(rows_BK >= 0, gallery_labels_G[rows_BK], -1)
        state.answers.update(row, labels_B, similarities_BK, rows_BK, labels_BK)
        state.ranking.update(ranker, embeddings_BD, labels_B, rows_BK, compared_Q[rows], own_rows_B)
        state.projected.update(row, embeddings_BD, labels_B)
        state.clustered.update(row, embeddings_BD, labels_B)
        row = rows.stop
    assert row == part.stop
    return state


def compute_evaluation(
    states: Sequence[EvaluationState],
    gallery: Chunks,
    gallery_labels_G: Labels,
    classes: list[str],
    settings: EvaluateSettings,
    threshold: float,
) -> EvaluationResult:
    """Merge the states of all parts and compute the metrics.

    Args:
        states: State of each part, in the order of the query split; the first one is modified.
        gallery: As for `update_evaluation`.
        gallery_labels_G: As for `update_evaluation`.
        classes: As for `update_evaluation`.
        settings: As for `update_evaluation`.
        threshold: As for `update_evaluation`.
    """
    state, *others = states
    for other in others:
        state.answers.merge(other.answers)
        state.ranking.merge(other.ranking)
        state.projected.merge(other.projected)
        state.clustered.merge(other.clustered)
    labels_Q, predicted_Q = state.answers.answers()
    in_gallery_C = np.bincount(gallery_labels_G, minlength=len(classes)) > 0
    in_queries_C = np.bincount(labels_Q, minlength=len(classes)) > 0
    table = confusion(labels_Q, predicted_Q, len(classes), evaluated_C=in_gallery_C | in_queries_C)
    accuracies = table.accuracy[in_queries_C]
    clustered = state.clustered
    return EvaluationResult(
        metrics={
            "top1": int(table.right.sum()) / len(labels_Q),
            **state.answers.compute(),
            **state.ranking.compute(),
            **state.ranking.pairs.compute(),
            **pair_metrics(clustered.embeddings, clustered.labels),
            **clustering_metrics(clustered.embeddings, clustered.labels),
            "mean_class_accuracy": float(accuracies.mean()),
            "min_class_accuracy": float(accuracies.min()),
            "threshold": threshold,
            "num_gallery": len(gallery_labels_G),
            "num_classes": int(in_gallery_C.sum()),
        },
        confusion=table,
        pairs=state.ranking.pairs,
        mistakes=state.answers.mistakes,
        queries=state.projected,
        queries_right=(labels_Q == predicted_Q)[state.projected.rows],
        gallery=_sample_gallery(gallery, len(gallery_labels_G), settings),
    )


def _sample_gallery(gallery: Chunks, num_rows: int, settings: EvaluateSettings) -> Sample:
    chosen = sampled_rows(num_rows, settings.num_projected // _GALLERY_POINTS)
    sample = Sample(chosen, next(iter(gallery()))[0].shape[1])
    row = 0
    for embeddings_ND, labels_N in gallery():
        sample.update(row, embeddings_ND, labels_N)
        row += len(labels_N)
    return sample

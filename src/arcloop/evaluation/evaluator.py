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
from arcloop.evaluation.metrics.answers import AnswerMetrics, Confusion, confusion, exclude_own_rows
from arcloop.evaluation.metrics.clustering import clustering_metrics
from arcloop.evaluation.metrics.pair_folds import pair_metrics
from arcloop.evaluation.metrics.ranking import GalleryRanker, RankingMetrics
from arcloop.evaluation.metrics.verification import SimilarityHistogram
from arcloop.evaluation.mistakes import Mistake
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch

Search = Callable[[Embeddings, int], tuple[Embeddings, Labels]]
"""Embeddings [B, D] and k -> similarities and gallery rows [B, k], nearest first; row -1: none."""

_NEIGHBOURS = 10
_GALLERY_POINTS = 6  # 1 in 6 points of the projection is a gallery row


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

    Each row is assigned a random number and the rows with the smallest numbers are chosen, so that
    a smaller sample is a subset of a larger one.

    Args:
        total: Number of rows.
        capacity: Maximum number of rows to choose.

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
        queries_right: bool, whether each sampled query was answered correctly.
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

    def __post_init__(self) -> None:
        if not self.num_queries:
            raise DataError("there are no queries", remedy="prepare a query split with images")
        if self.own_rows is not None and len(self.gallery_labels) < 2:
            raise DataError(
                "leave-one-out evaluation needs a gallery of at least 2 images, this one has 1",
                remedy="prepare a gallery split with more images",
            )

    def sample(self, total: int, capacity: int) -> Sample:
        """Return an empty sample of at most `capacity` of `total` rows."""
        return Sample(sampled_rows(total, capacity), next(iter(self.gallery()))[0].shape[1])


def evaluate_embeddings(
    queries: Iterable[tuple[Embeddings, Labels]], setup: EvaluationSetup
) -> EvaluationResult:
    """Evaluate query embeddings against a gallery and its index in a single process.

    Args:
        queries: (float32 [B, D] rows of norm 1, int64 [B] labels) of the query split, in order.
        setup: The gallery, the index and the settings.

    Raises:
        DataError: An embedding is not finite.
    """
    state = update_evaluation(queries, setup, range(setup.num_queries))
    return compute_evaluation([state], setup)


def update_evaluation(
    queries: Iterable[tuple[Embeddings, Labels]], setup: EvaluationSetup, part: range
) -> EvaluationState:
    """Search and rank the gallery for one part of the queries.

    Top-1, Recall@k, Precision@k, confusion, accuracy by class and mistakes measure the answers of
    the index. MAP@R, R-precision, MRR, nDCG, index recall, open set and ROC compare every query
    with every gallery row exactly; the ROC uses a random sample of the queries, limited by
    `settings.max_pairs`. Clustering and pair accuracy use the queries only.

    Args:
        queries: (float32 [B, D] rows of norm 1, int64 [B] labels) of the rows `part`, in order.
        setup: The gallery, the index and the settings.
        part: Rows of the query split in this part; it starts at a multiple of
            `settings.batch_size`.

    Raises:
        DataError: An embedding is not finite.
    """
    settings, num_gallery = setup.settings, len(setup.gallery_labels)
    k = min(_NEIGHBOURS, num_gallery)
    ranker = GalleryRanker(
        setup.gallery, setup.gallery_labels, len(setup.classes), num_ranks=k,
        memory_mb=settings.memory_mb, batch_size=settings.batch_size,
    )  # fmt: skip
    num_projected = settings.num_projected - settings.num_projected // _GALLERY_POINTS
    state = EvaluationState(
        AnswerMetrics(settings.num_mistakes, setup.threshold),
        RankingMetrics(),
        projected=setup.sample(setup.num_queries, num_projected),
        clustered=setup.sample(setup.num_queries, settings.max_clustered),
    )
    compared_Q = np.zeros(setup.num_queries, bool)
    max_compared = max(1, settings.max_pairs // num_gallery)
    compared_Q[sampled_rows(setup.num_queries, max_compared)] = True
    row = part.start
    for embeddings_BD, labels_B in rebatch(queries, settings.batch_size):
        rows = slice(row, row + len(labels_B))
        own_rows_B = np.full(len(labels_B), -1) if setup.own_rows is None else setup.own_rows[rows]
        # One more neighbour, because the query itself is excluded.
        found = setup.search(embeddings_BD, k + (setup.own_rows is not None))
        similarities_BK, rows_BK = exclude_own_rows(*found, own_rows_B, k)
        labels_BK = np.where(rows_BK >= 0, setup.gallery_labels[rows_BK], -1)
        state.answers.update(row, labels_B, similarities_BK, rows_BK, labels_BK)
        state.ranking.update(ranker, embeddings_BD, labels_B, rows_BK, compared_Q[rows], own_rows_B)
        state.projected.update(row, embeddings_BD, labels_B)
        state.clustered.update(row, embeddings_BD, labels_B)
        row = rows.stop
    assert row == part.stop
    return state


def compute_evaluation(
    states: Sequence[EvaluationState], setup: EvaluationSetup
) -> EvaluationResult:
    """Merge the states of all parts and compute the metrics.

    Args:
        states: State of each part, in the order of the query split; the first state is modified.
        setup: The gallery, the index and the settings.
    """
    state, *others = states
    for other in others:
        state.answers.merge(other.answers)
        state.ranking.merge(other.ranking)
        state.projected.merge(other.projected)
        state.clustered.merge(other.clustered)
    num_classes = len(setup.classes)
    labels_Q, predicted_Q = state.answers.answers()
    in_gallery_C = np.bincount(setup.gallery_labels, minlength=num_classes) > 0
    in_queries_C = np.bincount(labels_Q, minlength=num_classes) > 0
    table = confusion(labels_Q, predicted_Q, num_classes, evaluated_C=in_gallery_C | in_queries_C)
    accuracies = table.accuracy[in_queries_C]
    clustered = state.clustered.embeddings, state.clustered.labels
    return EvaluationResult(
        metrics={
            "top1": int(table.right.sum()) / len(labels_Q),
            **state.answers.compute(),
            **state.ranking.compute(),
            **state.ranking.pairs.compute(),
            **pair_metrics(*clustered),
            **clustering_metrics(*clustered),
            "mean_class_accuracy": float(accuracies.mean()),
            "min_class_accuracy": float(accuracies.min()),
            "threshold": setup.threshold,
            "num_gallery": len(setup.gallery_labels),
            "num_classes": int(in_gallery_C.sum()),
        },
        confusion=table,
        pairs=state.ranking.pairs,
        mistakes=state.answers.mistakes,
        queries=state.projected,
        queries_right=(labels_Q == predicted_Q)[state.projected.rows],
        gallery=_sample_gallery(setup),
    )


def _sample_gallery(setup: EvaluationSetup) -> Sample:
    num_points = setup.settings.num_projected // _GALLERY_POINTS
    sample = setup.sample(len(setup.gallery_labels), num_points)
    row = 0
    for embeddings_ND, labels_N in setup.gallery():
        sample.update(row, embeddings_ND, labels_N)
        row += len(labels_N)
    return sample

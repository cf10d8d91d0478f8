"""Judges a model and its index on the query split, in memory that does not grow with the split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.config.schema import EvaluateSettings
from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from arcloop.errors import DataError
from arcloop.evaluation.metrics.answers import AnswerCounts, Answers, Search
from arcloop.evaluation.metrics.clustering import clustering_metrics
from arcloop.evaluation.metrics.confusion import Confusion, confusion
from arcloop.evaluation.metrics.leave_one_out import no_own_rows
from arcloop.evaluation.metrics.pair_folds import pair_metrics
from arcloop.evaluation.metrics.ranking import Ranking, RankingCounts
from arcloop.evaluation.metrics.sample import Sample, Sampler, sampled_rows
from arcloop.evaluation.metrics.verification import SimilarityHistogram, verification_metrics
from arcloop.evaluation.mistakes import Mistake
from arcloop.retrieval.embed import Chunks, rebatch

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_NEIGHBOURS = 10
_GALLERY_POINTS = 6  # one in so many points of the projection is of the gallery


@dataclass(frozen=True)
class Judgement:
    """What the query split says of a model and its index.

    Attributes:
        metrics: Name -> finite number; what is undefined for these data is left out.
        confusion: Which class was answered for which.
        pairs: Similarities of query-gallery pairs of one class and of different ones.
        mistakes: The surest wrong answers, worst first.
        queries: Sample of the queries, for the projection.
        queries_right: bool, whether each of these was answered with its class.
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
class Findings:
    """What one part of the queries says; `conclude` puts the parts of a split together.

    Attributes:
        answers: Of the index.
        ranking: Of exact search.
        drawn: Queries of this part that are projected.
        clustered: Queries of this part that are clustered and paired.
    """

    answers: AnswerCounts
    ranking: RankingCounts
    drawn: Sample
    clustered: Sample


def judge(
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
) -> Judgement:
    """Judge the index that will be served, and the embedding behind it, in one process.

    See `examine` and `conclude`, whose arguments these are.
    """
    findings = examine(
        queries, gallery, search, gallery_labels_G, classes, settings, threshold, own_rows_Q,
        num_queries=num_queries,
    )  # fmt: skip
    return conclude([findings], gallery, gallery_labels_G, classes, settings, threshold)


def examine(
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
    group: ProcessGroup = SINGLE_PROCESS,
) -> Findings:
    """Look at this process's part of the queries.

    Top-1, Recall@k, Precision@k, confusion, accuracy by class and mistakes are of the answers the
    index gives. MAP@R, R-precision, MRR, nDCG, index recall, open set and ROC compare embeddings
    exactly: every query with every gallery row; for the ROC, as many queries, drawn at random, as
    `settings.max_pairs` allows. Clusters and pairs in folds are of queries alone.

    Args:
        queries: (float32 [B, D] rows of norm 1, int64 [B] labels), in the order of the split: those
            rows of it that are `group.shard(num_queries, settings.batch_size)`.
        gallery: Gives (float32 [N, D], int64 [N]) anew, in row order, in chunks of any length.
        search: The index.
        gallery_labels_G: Class of every gallery row; at least one.
        classes: Class names; a label is a position in it.
        settings: Batch size, and bounds on memory, pairs, mistakes and points.
        threshold: Similarity under which an answer is "unknown".
        own_rows_Q: Leave-one-out: for each query of the split, the gallery row that is the query
            itself, and neither an answer nor part of a pair; -1: none. None: no query has one.
        num_queries: Q, rows of the split over all processes.
        group: Processes that share the queries.

    Raises:
        DataError: There are no queries, or nothing to compare them with, or an embedding is not
            finite.
    """
    if not num_queries:
        raise DataError("there are no queries to judge", remedy="prepare a query split with rows")
    if own_rows_Q is not None and len(gallery_labels_G) < 2:
        raise DataError(
            "a gallery of one image cannot be judged by leave-one-out",
            remedy="prepare a gallery split with more rows",
        )
    part = group.shard(num_queries, settings.batch_size)
    k = min(_NEIGHBOURS, len(gallery_labels_G))
    answers = Answers(
        search, gallery_labels_G, k=k, threshold=threshold, num_mistakes=settings.num_mistakes,
        first_row=part.start,
    )  # fmt: skip
    ranking = Ranking(
        gallery, gallery_labels_G, len(classes), k=k, memory_mb=settings.memory_mb,
        batch=settings.batch_size,
    )  # fmt: skip
    embedding_dim = next(iter(gallery()))[0].shape[1]
    drawn, clustered = (
        Sampler(sampled_rows(num_queries, capacity), embedding_dim, part.start)
        for capacity in (
            settings.num_projected - settings.num_projected // _GALLERY_POINTS,
            settings.max_clustered,
        )
    )
    compared_Q = np.zeros(num_queries, bool)
    compared_Q[sampled_rows(num_queries, max(1, settings.max_pairs // len(gallery_labels_G)))] = 1
    row = part.start
    for embeddings_BD, labels_B in rebatch(queries, settings.batch_size):
        rows = slice(row, row + len(labels_B))
        row = rows.stop
        own_rows_B = no_own_rows(len(labels_B)) if own_rows_Q is None else own_rows_Q[rows]
        found_BK = answers.add(embeddings_BD, labels_B, own_rows_B)
        ranking.add(embeddings_BD, labels_B, found_BK, compared_Q[rows], own_rows_B)
        drawn.add(embeddings_BD, labels_B)
        clustered.add(embeddings_BD, labels_B)
    assert row == part.stop
    return Findings(answers.counts, ranking.counts, drawn.sample(), clustered.sample())


def conclude(
    findings: Sequence[Findings],
    gallery: Chunks,
    gallery_labels_G: Labels,
    classes: list[str],
    settings: EvaluateSettings,
    threshold: float,
) -> Judgement:
    """Put together what the parts of the queries say, in the order of the split.

    Args:
        findings: Of each part.
        gallery: As for `examine`.
        gallery_labels_G: As for `examine`.
        classes: As for `examine`.
        settings: As for `examine`.
        threshold: As for `examine`.
    """
    first, *others = findings
    answers, ranking = first.answers, first.ranking
    for other in others:
        answers.merge(other.answers)
        ranking.merge(other.ranking)
    drawn = Sample.joined([part.drawn for part in findings])
    clustered = Sample.joined([part.clustered for part in findings])
    labels_Q, predicted_Q = answers.label_of_queries(), answers.answer_to_queries()
    in_gallery_C = np.bincount(gallery_labels_G, minlength=len(classes)) > 0
    judged_C = in_gallery_C | (np.bincount(labels_Q, minlength=len(classes)) > 0)
    table = confusion(labels_Q, predicted_Q, len(classes), judged_C=judged_C)
    accuracies = table.accuracy[table.total > 0]
    return Judgement(
        metrics={
            "top1": int(table.right.sum()) / len(labels_Q),
            **answers.metrics(),
            **ranking.metrics(),
            **verification_metrics(ranking.pairs),
            **pair_metrics(clustered),
            **clustering_metrics(clustered),
            "mean_class_accuracy": float(accuracies.mean()),
            "min_class_accuracy": float(accuracies.min()),
            "threshold": threshold,
            "num_gallery": len(gallery_labels_G),
            "num_classes": int(in_gallery_C.sum()),
        },
        confusion=table,
        pairs=ranking.pairs,
        mistakes=answers.worst.found,
        queries=drawn,
        queries_right=(labels_Q == predicted_Q)[drawn.rows],
        gallery=_sample_gallery(gallery, len(gallery_labels_G), settings),
    )


def _sample_gallery(gallery: Chunks, rows: int, settings: EvaluateSettings) -> Sample:
    chosen = sampled_rows(rows, settings.num_projected // _GALLERY_POINTS)
    sampler: Sampler | None = None
    for embeddings_ND, labels_N in gallery():
        sampler = sampler or Sampler(chosen, embeddings_ND.shape[1])
        sampler.add(embeddings_ND, labels_N)
    assert sampler is not None
    return sampler.sample()

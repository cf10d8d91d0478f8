"""Judges a model and its index on the query split, in memory that does not grow with the split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.config import EvaluateSettings
from arcloop.errors import DataError
from arcloop.evaluation.answers import Answers, Search
from arcloop.evaluation.confusion import Confusion, confusion
from arcloop.evaluation.exact_search import Chunks, regroup
from arcloop.evaluation.leave_one_out import no_own_rows
from arcloop.evaluation.mistakes import Mistake
from arcloop.evaluation.ranking import Ranking
from arcloop.evaluation.sample import Sample
from arcloop.evaluation.verification import (
    SimilarityHistogram,
    compare_pairs,
    verification_metrics,
)

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_NEIGHBOURS = 10


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


def judge(
    queries: Iterable[tuple[Embeddings, Labels]],
    gallery: Chunks,
    search: Search,
    gallery_labels_G: Labels,
    classes: list[str],
    settings: EvaluateSettings,
    threshold: float,
    own_rows_Q: Labels | None = None,
) -> Judgement:
    """Judge the index that will be served, and the embedding behind it.

    Top-1, Recall@k, confusion, accuracy by class and mistakes are of the answers the index gives.
    MAP@R, R-precision, index recall and ROC compare embeddings exactly: every query with every
    gallery row; for the ROC, as many queries, drawn at random, as `settings.max_pairs` allows.

    Args:
        queries: (float32 [B, D] rows of norm 1, int64 [B] labels), in the order of the split.
        gallery: Gives (float32 [N, D], int64 [N]) anew, in row order, in chunks of any length.
        search: The index.
        gallery_labels_G: Class of every gallery row; at least one.
        classes: Class names; a label is a position in it.
        settings: Batch size, and bounds on memory, pairs, mistakes and points.
        threshold: Similarity under which an answer is "unknown".
        own_rows_Q: Leave-one-out: gallery row that is the query itself, and neither an answer nor
            part of a pair; -1: none. None: no query is in the gallery.

    Raises:
        DataError: There are no queries, or an embedding is not finite.
    """
    others = len(gallery_labels_G) - (1 if own_rows_Q is not None else 0)
    if not others:
        raise DataError(
            "a gallery of one image cannot be judged by leave-one-out",
            remedy="prepare a gallery split with more rows",
        )
    k = min(_NEIGHBOURS, others)
    answers = Answers(
        search, gallery_labels_G, k=k, threshold=threshold, num_mistakes=settings.num_mistakes
    )
    ranking = Ranking(gallery, gallery_labels_G, len(classes), k=k, memory_mb=settings.memory_mb)
    gallery_drawn, drawn, compared = _samples(gallery, len(gallery_labels_G), settings)
    seen = 0
    for batch in regroup(queries, settings.batch_size):
        own_rows_B = no_own_rows(len(batch[1]))
        if own_rows_Q is not None:
            own_rows_B = own_rows_Q[seen : seen + len(batch[1])]
        ranking.add(*batch, answers.add(*batch, own_rows_B), own_rows_B)
        drawn.add(*batch)
        compared.add(*batch)
        seen += len(batch[1])
    if not len(compared.rows):
        raise DataError("there are no queries to judge", remedy="prepare a query split with rows")
    pairs = compare_pairs(
        compared.embeddings,
        compared.labels,
        gallery,
        settings.memory_mb,
        None if own_rows_Q is None else own_rows_Q[compared.rows],
    )
    labels_Q, predicted_Q = answers.labels(), answers.predicted()
    in_gallery_C = np.bincount(gallery_labels_G, minlength=len(classes)) > 0
    judged_C = in_gallery_C | (np.bincount(labels_Q, minlength=len(classes)) > 0)
    table = confusion(labels_Q, predicted_Q, len(classes), judged_C=judged_C)
    accuracies = table.accuracy[table.total > 0]
    return Judgement(
        metrics={
            "top1": int(table.right.sum()) / len(labels_Q),
            **answers.metrics(),
            **ranking.metrics(),
            **verification_metrics(pairs),
            "mean_class_accuracy": float(accuracies.mean()),
            "min_class_accuracy": float(accuracies.min()),
            "threshold": threshold,
            "num_gallery": len(gallery_labels_G),
            "num_classes": int(in_gallery_C.sum()),
        },
        confusion=table,
        pairs=pairs,
        mistakes=answers.worst.found,
        queries=drawn,
        queries_right=(labels_Q == predicted_Q)[drawn.rows],
        gallery=gallery_drawn,
    )


def _samples(
    gallery: Chunks, gallery_rows: int, settings: EvaluateSettings
) -> tuple[Sample, Sample, Sample]:
    """Draw what is projected of the gallery, and make room for queries to project and compare."""
    projected = settings.num_projected // 6
    drawn: Sample | None = None
    for embeddings_ND, labels_N in gallery():
        drawn = drawn or Sample(projected, embeddings_ND.shape[1])
        drawn.add(embeddings_ND, labels_N)
    assert drawn is not None
    embedding_dim = drawn.embeddings.shape[1]
    compared = min(
        settings.max_pairs // gallery_rows, settings.memory_mb * 2**20 // (4 * embedding_dim)
    )
    return (
        drawn,
        Sample(settings.num_projected - projected, embedding_dim),
        Sample(max(1, compared), embedding_dim),
    )

"""Evaluation of a model and its index on query embeddings, without keeping all of them in memory.

Each process calls `update_evaluation` on its part of the queries, see `evaluate_part`, and
`compute_evaluation` merges the states. `evaluate_embeddings` does both in a single process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from arcloop.evaluation.intervals import Interval, compute_intervals
from arcloop.evaluation.metrics.clustering import clustering_metrics
from arcloop.evaluation.metrics.open_set import error_rates_of_answers, open_set_metrics
from arcloop.evaluation.metrics.quality import reject_metrics
from arcloop.evaluation.metrics.ranking import GalleryRanker
from arcloop.evaluation.metrics.retrieval import (
    Bools,
    PerQuery,
    concatenate,
    mean_metrics,
    neighbour_overlap,
    recall_and_precision,
)
from arcloop.evaluation.metrics.sample import Sample, pair_metrics, rows_in, sampled_rows
from arcloop.evaluation.metrics.verification import Rates, SimilarityHistogram, pair_counter
from arcloop.evaluation.mistakes import (
    Confusion,
    Mistake,
    accuracy_metrics,
    confusion,
    find_mistakes,
    worst_mistakes,
)
from arcloop.evaluation.options import AnswerOptions
from arcloop.evaluation.query_results import QueryResults
from arcloop.evaluation.setup import EvaluationSetup
from arcloop.retrieval.embed import Embeddings, Labels, rebatch

_NEIGHBOURS = 10
_RECALL_AT, _PRECISION_AT, _NDCG_AT = (1, 5, 10), (5, 10), (10,)
_FACTS = (
    "label", "predicted", "nearest", "similarity", "relevant", "best", "best_is_right",
    "best_other", "best_same",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model and its index, and the data of the report.

    Attributes:
        metrics: Name -> finite number, without metrics that are undefined for these data.
        intervals: Name -> ends of the 95% confidence interval, of the metrics that have one.
        per_query: The answer to each query and the values of the metrics that are means.
        not_measurable: Name of a metric for which these data are too few -> the reason, a sentence.
        confusion: Counts of answers by true class.
        pairs: Similarities of query-gallery pairs of the same class and of different classes.
        mistakes: The wrong answers with the highest similarity, most similar first.
        queries: Sample of the queries, for the projection.
        queries_right: bool, whether each sampled query was answered correctly.
        gallery: Sample of the gallery, for the projection.
        seconds: Optional answer mode -> time per query. Times are not metrics.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    per_query: QueryResults
    not_measurable: dict[str, str]
    confusion: Confusion
    pairs: SimilarityHistogram
    mistakes: list[Mistake]
    queries: Sample
    queries_right: Bools
    gallery: Sample
    seconds: dict[str, float]


@dataclass(frozen=True)
class EvaluationState:
    """Accumulated results of one part of the queries; can be pickled.

    Attributes:
        per_query: Metrics, class, answer and best matches of each query, by batch.
        pairs: Similarities of query-gallery pairs.
        mistakes: The wrong answers with the highest similarity.
        sampled: Embeddings of the rows of `EvaluationSetup.sampled_queries`, by batch.
        seconds: Optional answer mode -> time of all queries of the part.
        quality: Quality of each query, float32, by batch; empty for a model without quality.
        pair_rates: Metrics of the lists of pairs that the process measured.
    """

    per_query: list[PerQuery] = field(default_factory=list)
    pairs: SimilarityHistogram = field(default_factory=SimilarityHistogram)
    mistakes: list[Mistake] = field(default_factory=list)
    sampled: list[Embeddings] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    quality: list[Embeddings] = field(default_factory=list)
    pair_rates: Rates = field(default_factory=dict)


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
    options = AnswerOptions(setup.gallery, setup.gallery_labels, settings)
    ranker = GalleryRanker(
        setup.gallery, setup.gallery_labels, len(setup.classes), memory_mb=settings.memory_mb,
        num_neighbours=min(max(k, options.num_neighbours), num_gallery), ndcg_at=_NDCG_AT,
        batch_size=settings.batch_size, full_ranking=settings.full_ranking,
    )  # fmt: skip
    state, sampled = EvaluationState(), setup.sampled_queries
    compared_Q = np.zeros(setup.num_queries, bool)
    max_compared = max(1, settings.max_pairs // num_gallery)
    compared_Q[sampled_rows(setup.num_queries, max_compared)] = True
    row = part.start
    for embeddings_BD, labels_B in rebatch(queries, settings.batch_size):
        rows = slice(row, row + len(labels_B))
        excluded = setup.excluded(rows)
        # More neighbours, because some of them are excluded.
        answers = min(max(k, settings.vote_k or 0), num_gallery)
        found = setup.search(embeddings_BD, min(answers + excluded.most, num_gallery))
        rows_BK = ranker.equal_rows.prefer_lowest(found[1])
        sim_BK, rows_BK = excluded.remove(found[0], rows_BK, answers)
        answers_BK = np.where(rows_BK >= 0, setup.gallery_labels[rows_BK], -1)
        sim_BK, rows_BK, classes_BK = sim_BK[:, :k], rows_BK[:, :k], answers_BK[:, :k]
        count_pairs = pair_counter(state.pairs, labels_B, excluded, compared_Q[rows])
        scores, facts = ranker.rank(embeddings_BD, labels_B, excluded, count_pairs)
        exact_BK = facts.pop("neighbours")
        optional = options.measure(
            ranker, embeddings_BD, labels_B, excluded, answers_BK, exact_BK, scores | facts
        )
        state.per_query.append(
            {
                "label": labels_B,
                "predicted": classes_BK[:, 0].copy(),
                "nearest": rows_BK[:, 0].copy(),
                "similarity": sim_BK[:, 0].copy(),
                **recall_and_precision(classes_BK, labels_B, _RECALL_AT, _PRECISION_AT),
                "unknown_rate": (rows_BK[:, 0] < 0) | (sim_BK[:, 0] < setup.threshold),
                "index_recall_at_1": neighbour_overlap(rows_BK[:, :1], exact_BK[:, :1]),
                "index_recall_at_10": neighbour_overlap(rows_BK, exact_BK[:, :k]),
                **scores,
                **facts,
                **optional,
            }
        )
        worst = find_mistakes(row, labels_B, sim_BK, rows_BK, classes_BK, settings.num_mistakes)
        state.mistakes[:] = worst_mistakes([*state.mistakes, *worst], settings.num_mistakes)
        state.sampled.append(embeddings_BD[rows_in(sampled, row, len(labels_B))])
        row = rows.stop
    assert row == part.stop
    state.seconds.update(options.seconds)
    return state


def compute_evaluation(
    states: Sequence[EvaluationState], setup: EvaluationSetup
) -> EvaluationResult:
    """Merge the states of all parts and compute the metrics.

    Args:
        states: State of each part, in the order of the query split.
        setup: The gallery, the index and the settings.
    """
    values = concatenate([batch for state in states for batch in state.per_query])
    facts = {name: values.pop(name) for name in _FACTS}
    labels_Q, predicted_Q, relevant_Q = facts["label"], facts["predicted"], facts["relevant"]
    pairs = SimilarityHistogram()
    for state in states:
        pairs.merge(state.pairs)
    clustered, projected = _sampled(states, setup, labels_Q)
    in_gallery_C = np.bincount(setup.gallery_labels, minlength=len(setup.classes)) > 0
    evaluated_C = in_gallery_C | (np.bincount(labels_Q, minlength=len(setup.classes)) > 0)
    is_held_out_C = np.array([name in setup.held_out for name in setup.classes], bool)
    known_Q = relevant_Q > 0
    table = confusion(
        labels_Q, predicted_Q, len(setup.classes), evaluated_C=evaluated_C, known_Q=known_Q
    )
    rates = {
        **_open_set_rates(facts, values["unknown_rate"]),
        **pairs.compute(),
        **pair_metrics(clustered.embeddings, clustered.labels),
        **clustering_metrics(clustered.embeddings, clustered.labels),
        **dict(sorted(rate for state in states for rate in state.pair_rates.items())),
    }
    quality = [batch for state in states for batch in state.quality]
    per_query = QueryResults.of(facts, values, setup.groups, quality)
    metrics = {
        **accuracy_metrics(table, is_held_out_C),
        **mean_metrics(values, relevant_Q),
        **{name: rate for name, rate in rates.items() if not isinstance(rate, str)},
        "threshold": setup.threshold,
        "num_queries": len(labels_Q),
        "num_queries_not_in_gallery": int((~known_Q).sum()),
        "num_gallery": len(setup.gallery_labels),
        "num_classes": int(in_gallery_C.sum()),
        **reject_metrics(~per_query.correct, per_query.quality, known_Q),
    }
    return EvaluationResult(
        metrics=metrics,
        not_measurable={name: rate for name, rate in rates.items() if isinstance(rate, str)},
        intervals=compute_intervals(per_query, metrics),
        per_query=per_query,
        confusion=table,
        pairs=pairs,
        mistakes=worst_mistakes(
            [mistake for state in states for mistake in state.mistakes],
            setup.settings.num_mistakes,
        ),
        queries=projected,
        queries_right=per_query.correct[projected.rows],
        gallery=Sample.draw(setup.gallery, setup.gallery_labels, setup.num_projected[0]),
        seconds={
            mode: sum(state.seconds.get(mode, 0) for state in states) / len(labels_Q)
            for mode in states[0].seconds
        },
    )


def _sampled(
    states: Sequence[EvaluationState], setup: EvaluationSetup, labels_Q: Labels
) -> tuple[Sample, Sample]:
    """Return the samples of queries for clustering and for the projection."""
    rows = setup.sampled_queries
    embeddings_ND = np.concatenate([batch for state in states for batch in state.sampled])
    sample = Sample(rows, embeddings_ND, labels_Q[rows])
    counts = setup.settings.max_clustered, setup.num_projected[1]
    clustered, projected = (sample.subset(sampled_rows(len(labels_Q), count)) for count in counts)
    return clustered, projected


def _open_set_rates(facts: PerQuery, unknown_Q: Bools) -> Rates:
    best_Q, right_Q, other_Q = (facts[n] for n in ("best", "best_is_right", "best_other"))
    known_Q, correct_Q = facts["relevant"] > 0, facts["label"] == facts["predicted"]
    return {
        **open_set_metrics(best_Q, right_Q, other_Q, known_Q),
        **error_rates_of_answers(~unknown_Q, correct_Q, known_Q),
    }

"""Retrieval metrics of any embeddings, and the exact search that they are computed from.

`evaluate_retrieval` returns the usual metrics at once. The other functions compute one metric of
ranked neighbours, one value per query; the mean over the queries is the metric.
"""

from arcloop.evaluation.embeddings import evaluate_retrieval
from arcloop.evaluation.metrics.ranked_lists import evaluate_ranked_lists
from arcloop.evaluation.metrics.retrieval import (
    average_precision,
    average_precision_at_r,
    inverse_negative_penalty,
    ndcg_at_k,
    precision_at_k,
    r_precision,
    ranks_of_hits,
    recall_at_k,
    reciprocal_rank,
)
from arcloop.retrieval.exact_search import exact_neighbours

__all__ = [
    "average_precision", "average_precision_at_r", "evaluate_ranked_lists", "evaluate_retrieval",
    "exact_neighbours", "inverse_negative_penalty", "ndcg_at_k", "precision_at_k", "r_precision",
    "ranks_of_hits", "recall_at_k", "reciprocal_rank",
]  # fmt: skip

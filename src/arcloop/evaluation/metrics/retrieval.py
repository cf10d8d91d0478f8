"""Retrieval metrics of ranked neighbours: one value per query, and the mean over all queries.

Shapes: Q queries, K ranks (best first). R of a query is the number of gallery rows of its class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
PerQuery = dict[str, npt.NDArray[Any]]
"""Name -> array with one entry per query."""


def recall_at_k(neighbour_labels_QK: Labels, query_labels_Q: Labels, k: int) -> Bools:
    """Return whether one of the first k neighbours has the query's class; the mean is the hit rate.

    The metric learning literature calls it Recall@k (Jégou et al., TPAMI 2011; Oh Song et al., CVPR
    2016). In information retrieval, recall is instead the share of relevant rows that were found.

    Args:
        neighbour_labels_QK: Class of each neighbour, best first; negative: no neighbour.
        query_labels_Q: Class of each query, not negative.
        k: Number of ranks, at least 1; ranks beyond K count as no neighbour.

    Returns:
        bool [Q].

    >>> recall_at_k(np.array([[1, 0, 2], [2, 2, -1]]), np.array([0, 0]), k=2)
    array([ True, False])
    """
    return np.asarray((neighbour_labels_QK[:, :k] == query_labels_Q[:, None]).any(axis=1))


def precision_at_k(neighbour_labels_QK: Labels, query_labels_Q: Labels, k: int) -> Floats:
    """Return Precision@k: the share of the first k neighbours that have the query's class.

    The denominator is k even if the class has fewer rows or fewer neighbours were found: Manning et
    al., "Introduction to Information Retrieval", section 8.4.

    Args:
        neighbour_labels_QK: Class of each neighbour, best first; negative: no neighbour.
        query_labels_Q: Class of each query, not negative.
        k: Number of ranks, at least 1; ranks beyond K count as no neighbour.

    Returns:
        float64 [Q] in [0, 1].

    >>> precision_at_k(np.array([[1, 0, 2], [2, 2, -1]]), np.array([0, 2]), k=2)
    array([0.5, 1. ])
    """
    hits_Q = (neighbour_labels_QK[:, :k] == query_labels_Q[:, None]).sum(axis=1)
    return np.asarray(hits_Q / k, dtype=np.float64)


def recall_and_precision(
    neighbour_labels_QK: Labels,
    query_labels_Q: Labels,
    recall_at: Iterable[int],
    precision_at: Iterable[int],
) -> dict[str, Bools | Floats]:
    """Return Recall@k and Precision@k of each query for several k, by the name of the metric.

    >>> neighbours, labels = np.array([[1, 0, 2]]), np.array([0])
    >>> recall_and_precision(neighbours, labels, recall_at=[1, 5], precision_at=[2])
    {'recall_at_1': array([False]), 'recall_at_5': array([ True]), 'precision_at_2': array([0.5])}
    """
    neighbours_QK, labels_Q = neighbour_labels_QK, query_labels_Q
    return {
        **{f"recall_at_{k}": recall_at_k(neighbours_QK, labels_Q, k) for k in recall_at},
        **{f"precision_at_{k}": precision_at_k(neighbours_QK, labels_Q, k) for k in precision_at},
    }


def r_precision(same_QK: Bools, relevant_Q: Labels) -> Floats:
    """Return R-precision: the share of the R nearest rows that have the query's class.

    Musgrave et al., "A Metric Learning Reality Check" (arXiv 2003.08505), section 2.3.

    Args:
        same_QK: Whether the neighbour at each rank has the query's class; K >= max(R).
        relevant_Q: R of each query.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0; exclude these queries from the mean.

    >>> r_precision(np.array([[True, False, True, False]]), np.array([3])).round(4)
    array([0.6667])
    """
    hits_Q = _within_r(same_QK, relevant_Q).sum(axis=1)
    return np.asarray(hits_Q / np.maximum(relevant_Q, 1), dtype=np.float64)


def average_precision_at_r(same_QK: Bools, relevant_Q: Labels) -> Floats:
    """Return the average precision at R, whose mean is MAP@R.

    AP@R = 1/R * sum over ranks i <= R of P(i), where P(i) is the precision at i if the neighbour
    at rank i has the query's class, else 0: Musgrave et al. (arXiv 2003.08505), equation 1.

    Args:
        same_QK: Whether the neighbour at each rank has the query's class; K >= max(R).
        relevant_Q: R of each query.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0; exclude these queries from the mean.

    >>> average_precision_at_r(np.array([[True, False, True, False]]), np.array([3])).round(4)
    array([0.5556])
    """
    same_QK = _within_r(same_QK, relevant_Q)
    precision_QK = same_QK.cumsum(axis=1, dtype=np.float64)
    precision_QK /= np.arange(1, same_QK.shape[1] + 1)
    precision_QK *= same_QK
    return np.asarray(precision_QK.sum(axis=1) / np.maximum(relevant_Q, 1), dtype=np.float64)


def ranks_of_hits(same_QK: Bools) -> Labels:
    """Return the ranks of the neighbours of the query's class, from 1, ascending; then zeros.

    >>> ranks_of_hits(np.array([[True, False, True], [False, False, False]]))
    array([[1, 3],
           [0, 0]])
    """
    query, column = same_QK.nonzero()
    ranks_QR = np.zeros((len(same_QK), same_QK.sum(axis=1).max(initial=0)), np.int64)
    ranks_QR[query, np.arange(len(query)) - np.searchsorted(query, query)] = column + 1
    return ranks_QR


def average_precision(ranks_QR: Labels) -> Floats:
    """Return the average precision over the whole ranking, whose mean is mAP.

    AP = 1/R * sum over the relevant rows of the precision at their rank: Manning et al.,
    "Introduction to Information Retrieval", section 8.4; Zheng et al., ICCV 2015 (Market-1501).

    Args:
        ranks_QR: Ranks of all R relevant rows of each query, from 1, ascending, then zeros.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0; exclude these queries from the mean.

    >>> average_precision(np.array([[1, 3], [4, 0]])).round(4)
    array([0.8333, 0.25  ])
    """
    precision_QR = np.arange(1, ranks_QR.shape[1] + 1) / np.maximum(ranks_QR, 1)
    precision_QR *= ranks_QR > 0
    relevant_Q = np.maximum((ranks_QR > 0).sum(axis=1), 1)
    return np.asarray(precision_QR.sum(axis=1) / relevant_Q, dtype=np.float64)


def inverse_negative_penalty(ranks_QR: Labels) -> Floats:
    """Return R / (rank of the last relevant row), whose mean is mINP.

    Ye et al., "Deep Learning for Person Re-identification" (arXiv 2001.04193), equation 9.

    Args:
        ranks_QR: Ranks of all R relevant rows of each query, from 1, ascending, then zeros.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0; exclude these queries from the mean.

    >>> inverse_negative_penalty(np.array([[1, 3], [4, 0]])).round(4)
    array([0.6667, 0.25  ])
    """
    relevant_Q = (ranks_QR > 0).sum(axis=1)
    return np.asarray(relevant_Q / np.maximum(ranks_QR.max(axis=1, initial=0), 1), np.float64)


def reciprocal_rank(same_QK: Bools) -> Floats:
    """Return 1 / (rank of the first neighbour of the query's class), whose mean is MRR.

    Voorhees, "The TREC-8 Question Answering Track Report", 1999.

    Args:
        same_QK: Whether the neighbour at each rank has the query's class.

    Returns:
        float64 [Q] in [0, 1]; 0 if no neighbour has the class.

    >>> reciprocal_rank(np.array([[False, True, True], [False, False, False]]))
    array([0.5, 0. ])
    """
    return np.asarray(same_QK.any(axis=1) / (same_QK.argmax(axis=1) + 1.0), dtype=np.float64)


def ndcg_at_k(same_QK: Bools, relevant_Q: Labels, k: int) -> Floats:
    """Return the normalised discounted cumulative gain at k with binary relevance.

    DCG@k = sum over ranks i <= k of rel_i / log2(i + 1), divided by the DCG@k of an ideal ranking,
    which has min(k, R) relevant rows first: Järvelin and Kekäläinen, TOIS 2002.

    Args:
        same_QK: Whether the neighbour at each rank has the query's class; K >= min(k, gallery).
        relevant_Q: R of each query.
        k: Number of ranks, at least 1.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0; exclude these queries from the mean.

    >>> ndcg_at_k(np.array([[True, False, True, False]]), np.array([2]), k=3).round(4)
    array([0.9197])
    """
    gain_k = 1 / np.log2(np.arange(2, k + 2))
    ideal_k = gain_k.cumsum()
    same_QK = same_QK[:, :k]
    dcg_Q = (same_QK * gain_k[: same_QK.shape[1]]).sum(axis=1)
    return np.asarray(dcg_Q / ideal_k[np.clip(relevant_Q, 1, k) - 1], dtype=np.float64)


def _within_r(same_QK: Bools, relevant_Q: Labels) -> Bools:
    """Return `same_QK`, set to False at ranks above the R of the query."""
    return np.asarray(same_QK & (np.arange(same_QK.shape[1]) < relevant_Q[:, None]))


def neighbour_overlap(found_QK: Labels, exact_QK: Labels) -> Floats:
    """Return the share of each query's exact neighbours that an index found, in any order.

    Args:
        found_QK: Rows that the index returned; -1: none.
        exact_QK: Rows that an exact search returns, K >= 1; -1: none.

    Returns:
        float64 [Q] in [0, 1].

    >>> neighbour_overlap(np.array([[4, 7, -1]]), np.array([[7, 2, 4]])).round(4)
    array([0.6667])
    """
    shared_QK = (found_QK[:, :, None] == exact_QK[:, None, :]).any(axis=1)
    return np.asarray(shared_QK.mean(axis=1, dtype=np.float64))


def concatenate(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> PerQuery:
    """Join the named arrays of consecutive batches of queries."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def mean_metrics(values: Mapping[str, npt.NDArray[Any]], relevant_Q: Labels) -> dict[str, float]:
    """Return the mean of each metric over the known queries, which are those with R > 0.

    They are left out if there are no known queries. `unknown_rate` and the recall of the index are
    means over all queries.

    Args:
        values: Metric -> its value for each query; at least one query.
        relevant_Q: R of each query.

    >>> hits = {"recall_at_1": np.array([True, False]), "mrr": np.array([1.0, 0.0])}
    >>> mean_metrics(hits, np.array([3, 0]))
    {'recall_at_1': 1.0, 'mrr': 1.0}
    """
    known_Q = relevant_Q > 0
    return {
        name: float(values_Q[known_Q].mean() if is_of_known(name) else values_Q.mean())
        for name, values_Q in values.items()
        if known_Q.any() or not is_of_known(name)
    }


def is_of_known(name: str) -> bool:
    """Return whether a metric is measured on the known queries, which are those with R > 0."""
    return name != "unknown_rate" and not name.startswith("index_recall_at_")

"""Retrieval metrics of ranked neighbours, one value per query; the metric is their mean.

Shapes: Q queries, K ranks (best first). R of a query is the number of gallery rows of its class.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def recall_at_k(neighbour_labels_QK: Labels, query_labels_Q: Labels, k: int) -> Bools:
    """Whether a neighbour of the query's class is among the first k: the hit rate.

    This is what metric learning calls Recall@k (Jégou et al., TPAMI 2011; Oh Song et al., CVPR
    2016). It is not the share of the relevant rows that were found.

    Args:
        neighbour_labels_QK: Class of each neighbour, best first; negative: there is none.
        query_labels_Q: Class of each query, not negative.
        k: Ranks looked at, from 1; ranks beyond K count as no neighbour.

    Returns:
        bool [Q].

    >>> recall_at_k(np.array([[1, 0, 2], [2, 2, -1]]), np.array([0, 0]), k=2)
    array([ True, False])
    """
    return np.asarray((neighbour_labels_QK[:, :k] == query_labels_Q[:, None]).any(axis=1))


def precision_at_k(neighbour_labels_QK: Labels, query_labels_Q: Labels, k: int) -> Floats:
    """Precision@k: the share of the first k ranks that hold a neighbour of the query's class.

    The share is of k also where fewer rows are of the class, or fewer were found: Manning et al.,
    "Introduction to Information Retrieval", section 8.4.

    Args:
        neighbour_labels_QK: Class of each neighbour, best first; negative: there is none.
        query_labels_Q: Class of each query, not negative.
        k: Ranks looked at, from 1; ranks beyond K count as no neighbour.

    Returns:
        float64 [Q] in [0, 1].

    >>> precision_at_k(np.array([[1, 0, 2], [2, 2, -1]]), np.array([0, 2]), k=2)
    array([0.5, 1. ])
    """
    hits_Q = (neighbour_labels_QK[:, :k] == query_labels_Q[:, None]).sum(axis=1)
    return np.asarray(hits_Q / k, dtype=np.float64)


def hits_at_k(
    neighbour_labels_QK: Labels,
    query_labels_Q: Labels,
    recall_at: Iterable[int],
    precision_at: Iterable[int],
) -> dict[str, Bools | Floats]:
    """Recall@k and Precision@k of each query at several k, by the name of the metric.

    >>> hits_at_k(np.array([[1, 0, 2]]), np.array([0]), recall_at=[1, 5], precision_at=[2])
    {'recall_at_1': array([False]), 'recall_at_5': array([ True]), 'precision_at_2': array([0.5])}
    """
    found_QK, labels_Q = neighbour_labels_QK, query_labels_Q
    return {
        **{f"recall_at_{k}": recall_at_k(found_QK, labels_Q, k) for k in recall_at},
        **{f"precision_at_{k}": precision_at_k(found_QK, labels_Q, k) for k in precision_at},
    }


def r_precision(same_QK: Bools, relevant_Q: Labels) -> Floats:
    """R-precision: the share of its R nearest rows that are of its class.

    Musgrave et al., "A Metric Learning Reality Check" (arXiv 2003.08505), section 2.3.

    Args:
        same_QK: Whether the neighbour at each rank is of the query's class; K >= max(R).
        relevant_Q: R of each query.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0, to be left out of a mean.

    >>> r_precision(np.array([[True, False, True, False]]), np.array([3])).round(4)
    array([0.6667])
    """
    hits_Q = _within_r(same_QK, relevant_Q).sum(axis=1)
    return np.asarray(hits_Q / np.maximum(relevant_Q, 1), dtype=np.float64)


def average_precision_at_r(same_QK: Bools, relevant_Q: Labels) -> Floats:
    """Average precision at R, whose mean is MAP@R.

    AP@R = 1/R * sum over ranks i <= R of P(i), where P(i) is the precision at i if the neighbour
    at i is of the query's class, else 0: Musgrave et al. (arXiv 2003.08505), equation 1.

    Args:
        same_QK: Whether the neighbour at each rank is of the query's class; K >= max(R).
        relevant_Q: R of each query.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0, to be left out of a mean.

    >>> average_precision_at_r(np.array([[True, False, True, False]]), np.array([3])).round(4)
    array([0.5556])
    """
    same_QK = _within_r(same_QK, relevant_Q)
    precision_QK = same_QK.cumsum(axis=1, dtype=np.float64)
    precision_QK /= np.arange(1, same_QK.shape[1] + 1)
    precision_QK *= same_QK
    return np.asarray(precision_QK.sum(axis=1) / np.maximum(relevant_Q, 1), dtype=np.float64)


def reciprocal_rank(same_QK: Bools) -> Floats:
    """One over the rank of the first neighbour of the query's class; its mean is MRR.

    Voorhees, "The TREC-8 Question Answering Track Report", 1999.

    Args:
        same_QK: Whether the neighbour at each rank is of the query's class.

    Returns:
        float64 [Q] in [0, 1]; 0 where none is.

    >>> reciprocal_rank(np.array([[False, True, True], [False, False, False]]))
    array([0.5, 0. ])
    """
    return np.asarray(same_QK.any(axis=1) / (same_QK.argmax(axis=1) + 1.0), dtype=np.float64)


def ndcg_at_k(same_QK: Bools, relevant_Q: Labels, k: int) -> Floats:
    """Normalised discounted cumulative gain at k, where a row is relevant or not.

    DCG@k = sum over ranks i <= k of rel_i / log2(i + 1), over the same of the best ranking there
    could be, which has min(k, R) relevant rows first: Järvelin and Kekäläinen, TOIS 2002.

    Args:
        same_QK: Whether the neighbour at each rank is of the query's class; K >= min(k, gallery).
        relevant_Q: R of each query.
        k: Ranks looked at, from 1.

    Returns:
        float64 [Q] in [0, 1]; 0 where R = 0, to be left out of a mean.

    >>> ndcg_at_k(np.array([[True, False, True, False]]), np.array([2]), k=3).round(4)
    array([0.9197])
    """
    gain_k = 1 / np.log2(np.arange(2, k + 2))
    best_k = gain_k.cumsum()
    seen_QK = same_QK[:, :k]
    found_Q = (seen_QK * gain_k[: seen_QK.shape[1]]).sum(axis=1)
    best_Q = best_k[np.clip(relevant_Q, 1, k) - 1]
    return np.asarray(found_Q / best_Q, dtype=np.float64)


def _within_r(same_QK: Bools, relevant_Q: Labels) -> Bools:
    return np.asarray(same_QK & (np.arange(same_QK.shape[1]) < relevant_Q[:, None]))


def overlap(found_QK: Labels, exact_QK: Labels) -> Floats:
    """Share of each query's exact neighbours that an index found, in whatever order.

    Args:
        found_QK: Rows the index returned; -1: none.
        exact_QK: Rows an exact search returns, K >= 1; -1: there is none, nor is one to be found.

    Returns:
        float64 [Q] in [0, 1].

    >>> overlap(np.array([[4, 7, -1]]), np.array([[7, 2, 4]])).round(4)
    array([0.6667])
    """
    shared_QK = (found_QK[:, :, None] == exact_QK[:, None, :]).any(axis=1)
    return np.asarray(shared_QK.mean(axis=1, dtype=np.float64))

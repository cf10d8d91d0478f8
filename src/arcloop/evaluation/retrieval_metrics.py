"""Retrieval metrics of ranked neighbours, one value per query; the metric is their mean.

Shapes: Q queries, K ranks (best first). R of a query is the number of gallery rows of its class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def recall_at_k(neighbour_labels_QK: Labels, query_labels_Q: Labels, k: int) -> Bools:
    """Whether a neighbour of the query's class is among the first k.

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


def _within_r(same_QK: Bools, relevant_Q: Labels) -> Bools:
    return np.asarray(same_QK & (np.arange(same_QK.shape[1]) < relevant_Q[:, None]))


def overlap(found_QK: Labels, exact_QK: Labels) -> Floats:
    """Share of each query's exact neighbours that an index found, in whatever order.

    Args:
        found_QK: Rows the index returned; -1: none.
        exact_QK: Rows an exact search returns, K >= 1.

    Returns:
        float64 [Q] in [0, 1].

    >>> overlap(np.array([[4, 7, -1]]), np.array([[7, 2, 4]])).round(4)
    array([0.6667])
    """
    shared_QK = (found_QK[:, :, None] == exact_QK[:, None, :]).any(axis=1)
    return np.asarray(shared_QK.mean(axis=1, dtype=np.float64))

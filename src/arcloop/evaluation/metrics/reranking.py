"""Query expansion, and re-ranking of the first neighbours of a query by k-reciprocal neighbours.

Shapes: Q queries, K neighbours, D dimensions, N = 1 + K: a query and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from arcloop.evaluation.metrics.retrieval import Bools, Floats, Labels
from arcloop.retrieval.duplicates import rounded
from arcloop.retrieval.embed import Chunks, Embeddings

_BYTES_PER_CELL = 80  # of the arrays [Q, N, N] of `_k_reciprocal_distances`


def expand_queries(
    queries_QD: Embeddings, rows_QK: Labels, gallery: Chunks, alpha: float, memory_mb: int
) -> Embeddings:
    """Return the normalised weighted sum of each query and its neighbours.

    A neighbour has the weight max(cosine, 0)**alpha: Radenović et al., "Fine-tuning CNN Image
    Retrieval with No Human Annotation", TPAMI 2018, section 3.3. With alpha = 0 this is average
    query expansion: Chum et al., "Total Recall", ICCV 2007. A sum of zero, as of a query and its
    opposite, stays zero.

    Args:
        queries_QD: float32, rows of norm 1.
        rows_QK: Gallery rows of the neighbours; -1: none.
        gallery: Returns an iterator over the gallery in row order.
        alpha: Exponent, at least 0.
        memory_mb: Memory limit in MiB.

    Returns:
        float32 [Q, D], rows of norm 1 or 0.

    >>> rows = np.array([[1, 0], [0, 1]], np.float32)
    >>> gallery = lambda: [(rows, np.arange(2))]
    >>> expand_queries(rows[:1], np.array([[0, 1]]), gallery, alpha=1, memory_mb=1).tolist()
    [[1.0, 0.0]]
    """
    expanded_QD = queries_QD.astype(np.float64)
    for part, rows_BKD in _gathered(rows_QK, gallery, memory_mb):
        cosines_BK = np.einsum("bkd,bd->bk", rows_BKD, queries_QD[part], dtype=np.float64)
        weights_BK = np.maximum(cosines_BK, 0) ** alpha * (rows_QK[part] >= 0)
        expanded_QD[part] += np.einsum("bk,bkd->bd", weights_BK, rows_BKD)
    norms_Q1 = np.linalg.norm(expanded_QD, axis=1, keepdims=True)
    return np.asarray(expanded_QD / np.maximum(norms_Q1, 1e-12), dtype=np.float32)


def rerank(
    queries_QD: Embeddings,
    rows_QK: Labels,
    gallery: Chunks,
    *,
    k1: int,
    k2: int,
    original_weight: float,
    memory_mb: int,
) -> Labels:
    """Order the neighbours of each query by k-reciprocal encoding.

    Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017. The
    paper compares all gallery rows and all queries with each other. Here, each query is re-ranked
    on its own, and the neighbours of a neighbour are searched exactly among the query and its K
    neighbours only. With one query and K = G, both are the same.

    Args:
        queries_QD: float32, rows of norm 1.
        rows_QK: Gallery rows of the neighbours, nearest first; -1: none.
        gallery: Returns an iterator over the gallery in row order.
        k1: Size of the k-reciprocal neighbourhoods.
        k2: Number of nearest encodings that are averaged.
        original_weight: Weight of the original distance, lambda in the paper, in [0, 1].
        memory_mb: Memory limit in MiB.

    Returns:
        The gallery rows in their new order, int64 [Q, K]; ties keep their order.
    """
    reranked_QK = rows_QK.copy()
    for part, rows_BKD in _gathered(rows_QK, gallery, memory_mb):
        step = max(1, memory_mb * 2**19 // (_BYTES_PER_CELL * (1 + rows_QK.shape[1]) ** 2))
        for start in range(0, len(rows_BKD), step):
            some = slice(part.start + start, min(part.start + start + step, part.stop))
            items_BND = np.concatenate(
                [queries_QD[some, None], rows_BKD[start : start + step]], axis=1
            )
            valid_BN = np.insert(rows_QK[some] >= 0, 0, True, axis=1)
            with threadpool_limits(1, user_api="blas"):  # the products are too small for more
                distances_BK = _k_reciprocal_distances(items_BND, valid_BN, k1, k2, original_weight)
            order_BK = np.argsort(distances_BK, axis=1, kind="stable")
            reranked_QK[some] = np.take_along_axis(rows_QK[some], order_BK, axis=1)
    return reranked_QK


def _k_reciprocal_distances(
    items_BND: Embeddings, valid_BN: Bools, k1: int, k2: int, original_weight: float
) -> Floats:
    """Return the final distance of item 0 to the others, [B, K]; infinite where not valid."""
    exact_BND = rounded(items_BND)
    valid_BNN = valid_BN[:, :, None] & valid_BN[:, None]
    distance_BNN = np.where(valid_BNN, 2 - 2 * exact_BND @ exact_BND.swapaxes(1, 2), np.inf)
    rank_BNN = distance_BNN.argsort(axis=2, kind="stable").argsort(axis=2)
    largest_BN1 = np.where(valid_BNN, distance_BNN, 0).max(axis=2, keepdims=True)
    distance_BNN /= np.maximum(largest_BN1, 1e-12)

    def reciprocal(k: int) -> npt.NDArray[np.float32]:
        nearest_BNN = (rank_BNN <= k) & valid_BNN
        return (nearest_BNN & nearest_BNN.swapaxes(1, 2)).astype(np.float32)

    wide_BNN, narrow_BNN = reciprocal(k1), reciprocal(round(k1 / 2))
    # The neighbourhood of a member is added if two thirds of it are already in the neighbourhood.
    shared_BNN = wide_BNN @ narrow_BNN  # which is symmetric
    added_BNN = wide_BNN * (3 * shared_BNN > 2 * narrow_BNN.sum(axis=2)[:, None])
    members_BNN = (wide_BNN > 0) | (added_BNN @ narrow_BNN > 0)
    encoding_BNN = np.where(members_BNN, np.exp(-distance_BNN), 0)
    encoding_BNN /= np.maximum(encoding_BNN.sum(axis=2, keepdims=True), 1e-12)
    averaged_BNN = ((rank_BNN < k2) & valid_BNN).astype(np.float64)
    averaged_BNN /= np.maximum(averaged_BNN.sum(axis=2, keepdims=True), 1)
    encoding_BNN = averaged_BNN @ encoding_BNN
    overlap_BK = np.minimum(encoding_BNN[:, :1], encoding_BNN[:, 1:]).sum(axis=2)
    jaccard_BK = 1 - overlap_BK / (2 - overlap_BK)
    original_BK = np.where(valid_BN, distance_BNN[:, 0], 0)[:, 1:]
    final_BK = (1 - original_weight) * jaccard_BK + original_weight * original_BK
    return np.where(valid_BN[:, 1:], final_BK, np.inf)


def _gathered(
    rows_QK: Labels, gallery: Chunks, memory_mb: int
) -> Iterator[tuple[slice, Embeddings]]:
    """Yield parts of the queries with the embeddings of their neighbours, float32 [B, K, D].

    The gallery is read once for each part. Rows that are -1 have the embedding of some other row.
    """
    dim = next(iter(gallery()))[0].shape[1]
    step = max(1, memory_mb * 2**19 // (8 * dim * rows_QK.shape[1]))
    for start in range(0, len(rows_QK), step):
        part = slice(start, min(start + step, len(rows_QK)))
        rows, place_BK = np.unique(np.maximum(rows_QK[part], 0), return_inverse=True)
        picked, first_row = [], 0
        for rows_ND, _ in gallery():
            first, last = np.searchsorted(rows, [first_row, first_row + len(rows_ND)])
            picked.append(rows_ND[rows[first:last] - first_row])
            first_row += len(rows_ND)
        yield part, np.concatenate(picked)[place_BK.reshape(rows_QK[part].shape)]

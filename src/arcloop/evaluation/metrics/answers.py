"""Other ways to answer a query than by its nearest row: a vote, or the mean of each class.

Shapes: Q queries, K neighbours, C classes, D dimensions, G gallery rows.
"""

from __future__ import annotations

import numpy as np

from arcloop.evaluation.metrics.retrieval import Bools, Labels
from arcloop.retrieval.embed import Chunks, Embeddings
from arcloop.retrieval.exact_search import exact_neighbours


def vote(neighbour_labels_QK: Labels) -> Labels:
    """Return the most frequent class of the neighbours; of several, that of the nearest of them.

    Cover and Hart, "Nearest neighbor pattern classification", IEEE Trans. Inf. Theory, 1967.

    Args:
        neighbour_labels_QK: Class of each neighbour, nearest first; negative: no neighbour.

    Returns:
        int64 [Q]; negative where there is no neighbour.

    >>> vote(np.array([[4, 7, 7], [7, 4, -1], [-1, -1, -1]]))
    array([ 7,  7, -1])
    """
    labels_QK = neighbour_labels_QK
    votes = [(labels_QK == label_Q[:, None]).sum(axis=1) for label_Q in labels_QK.T]
    votes_QK = np.where(labels_QK >= 0, np.stack(votes, axis=1), 0)
    return np.asarray(labels_QK[np.arange(len(labels_QK)), votes_QK.argmax(axis=1)])


class Prototypes:
    """Answers with the class whose mean gallery embedding has the highest cosine to the query.

    Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017, with cosine.

    Args:
        gallery: Returns an iterator over the gallery in row order.
        labels_G: Class of every gallery row.
    """

    def __init__(self, gallery: Chunks, labels_G: Labels) -> None:
        self._classes, class_G, self._count_C = np.unique(
            labels_G, return_inverse=True, return_counts=True
        )
        row = 0
        for rows_ND, _ in gallery():
            if not row:
                self._sum_CD = np.zeros((len(self._classes), rows_ND.shape[1]))
            order = np.argsort(class_G[row : row + len(rows_ND)], kind="stable")
            classes, starts = np.unique(class_G[row + order], return_index=True)
            self._sum_CD[classes] += np.add.reduceat(rows_ND[order].astype(np.float64), starts)
            row += len(rows_ND)
        norms_C1 = np.linalg.norm(self._sum_CD, axis=1, keepdims=True)
        self._mean_CD = (self._sum_CD / np.maximum(norms_C1, 1e-12)).astype(np.float32)

    def predict(self, queries_QD: Embeddings, labels_Q: Labels, in_gallery_Q: Bools) -> Labels:
        """Return the class of each query, int64 [Q]; -1: there is no class.

        Args:
            queries_QD: float32, rows of norm 1.
            labels_Q: Class of each query.
            in_gallery_Q: bool, whether the query is a gallery row; it is then left out of the mean
                of its class.
        """
        similarities, nearest = exact_neighbours(queries_QD, self._mean_CD, 2)
        own_Q = np.searchsorted(self._classes, labels_Q)
        for query in np.flatnonzero(in_gallery_Q):
            own, others = own_Q[query], nearest[query] != own_Q[query]
            mean_D = self._sum_CD[own] - queries_QD[query]
            similarity = queries_QD[query] @ mean_D / max(np.linalg.norm(mean_D), 1e-12)
            best_other = similarities[query][others][0]
            if self._count_C[own] > 1 and similarity >= best_other:
                nearest[query, 0] = own
            else:
                nearest[query, 0] = nearest[query][others][0]
        return np.where(nearest[:, 0] < 0, -1, self._classes[nearest[:, 0]])

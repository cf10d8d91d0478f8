"""How well the embedding ranks the gallery: measured exactly, whatever the index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.exact_search import (
    Chunks,
    Nearest,
    block_shape,
    map_blocks,
    similarity_blocks,
)
from arcloop.evaluation.leave_one_out import LAST, own_cells
from arcloop.evaluation.retrieval_metrics import (
    Floats,
    average_precision_at_r,
    overlap,
    r_precision,
)

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Ranking:
    """Ranks the whole gallery for batch after batch of queries and keeps count.

    Args:
        gallery: Gives the gallery anew, in row order.
        gallery_labels_G: Class of every row.
        num_classes: Number of classes.
        k: Neighbours asked of the index, compared with the exact ones; at most the gallery rows
            that a query has beside itself.
        memory_mb: Bound on what is held beside queries and gallery, in MiB.
    """

    def __init__(
        self, gallery: Chunks, gallery_labels_G: Labels, num_classes: int, *, k: int, memory_mb: int
    ) -> None:
        self._gallery = gallery
        self._gallery_labels_G = gallery_labels_G
        self._relevant_C = np.bincount(gallery_labels_G, minlength=num_classes)
        self._k = k
        self._ranks = max(k, int(self._relevant_C.max()))
        self._rows, self._columns = block_shape(memory_mb, self._ranks)
        self._average_precision = self._r_precision = self._overlap = 0.0
        self._matched = self._seen = 0

    def add(
        self, embeddings_QD: Embeddings, labels_Q: Labels, found_QK: Labels, own_rows_Q: Labels
    ) -> None:
        """Rank the gallery for the next queries.

        Args:
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Their classes.
            found_QK: Gallery rows the index found for them; -1: none.
            own_rows_Q: Gallery row that is the query itself, of its class and not ranked; -1: none.
        """
        relevant_Q = self._relevant(labels_Q, own_rows_Q)
        ranked = map_blocks(self._rank, embeddings_QD, labels_Q, self._rows, own_rows_Q)
        exact, average_precision, precision = zip(*ranked, strict=True)
        self._average_precision += float(np.concatenate(average_precision).sum())
        self._r_precision += float(np.concatenate(precision).sum())
        self._overlap += float(overlap(found_QK, np.concatenate(exact)).sum())
        self._matched += int((relevant_Q > 0).sum())
        self._seen += len(labels_Q)

    def _relevant(self, labels_B: Labels, own_rows_B: Labels) -> Labels:
        """R of each query: the gallery rows of its class that are not the query itself."""
        return np.asarray(self._relevant_C[labels_B] - (own_rows_B >= 0))

    def _rank(
        self, embeddings_BD: Embeddings, labels_B: Labels, own_rows_B: Labels
    ) -> tuple[Labels, Floats, Floats]:
        """Return the k nearest rows, average precision at R and R-precision of each query."""
        nearest = Nearest(len(labels_B), self._ranks, self._columns)
        blocks = similarity_blocks(embeddings_BD, self._gallery, self._columns)
        for first_row, sim_BN, _ in blocks:
            sim_BN[own_cells(own_rows_B, first_row, sim_BN.shape[1])] = LAST
            nearest.add(first_row, sim_BN)
        rows_BR = nearest.rows()
        same_BR = self._gallery_labels_G[rows_BR] == labels_B[:, None]
        same_BR &= rows_BR != own_rows_B[:, None]  # where it is ranked at all, it is the last
        relevant_B = self._relevant(labels_B, own_rows_B)
        return (
            rows_BR[:, : self._k].copy(),
            average_precision_at_r(same_BR, relevant_B),
            r_precision(same_BR, relevant_B),
        )

    def metrics(self) -> dict[str, float]:
        """Return what was measured; MAP@R and R-precision over queries with R > 0, if any."""
        metrics: dict[str, float] = {}
        if self._matched:
            metrics["map_at_r"] = self._average_precision / self._matched
            metrics["r_precision"] = self._r_precision / self._matched
        metrics["index_recall_at_10"] = self._overlap / self._seen
        metrics["num_queries_not_in_gallery"] = self._seen - self._matched
        return metrics

"""What a user is answered: measured through the index that will be served."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.leave_one_out import without_own
from arcloop.evaluation.mistakes import WorstMistakes
from arcloop.evaluation.retrieval_metrics import recall_at_k

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Search = Callable[[Embeddings, int], tuple[Embeddings, Labels]]
"""Embeddings [B, D] and k -> similarities and gallery rows [B, k], nearest first; row -1: none."""

_RECALLS = (1, 5, 10)


class Answers:
    """Asks the index about batch after batch of queries and keeps count.

    Args:
        search: The index.
        gallery_labels_G: Class of every gallery row.
        k: Neighbours asked for.
        threshold: Similarity under which an answer is "unknown".
        num_mistakes: Worst mistakes kept.

    Attributes:
        worst: The mistakes kept.
    """

    def __init__(
        self,
        search: Search,
        gallery_labels_G: Labels,
        *,
        k: int,
        threshold: float,
        num_mistakes: int,
    ) -> None:
        self.worst = WorstMistakes(num_mistakes)
        self._search = search
        self._gallery_labels_G = gallery_labels_G
        self._k = k
        self._threshold = threshold
        self._hits = np.zeros(len(_RECALLS), np.int64)
        self._unknown = 0
        self._seen = 0
        self._labels: list[npt.NDArray[np.int32]] = []
        self._predicted: list[npt.NDArray[np.int32]] = []

    def add(self, embeddings_BD: Embeddings, labels_B: Labels, own_rows_B: Labels) -> Labels:
        """Ask about the next queries and return the gallery rows found, [B, k].

        Args:
            embeddings_BD: float32, rows of norm 1.
            labels_B: Their classes.
            own_rows_B: Gallery row that is the query itself, and no answer; -1: none.
        """
        itself = 1 if (own_rows_B >= 0).any() else 0
        similarities_BK, rows_BK = self._search(embeddings_BD, self._k + itself)
        if itself:
            similarities_BK, rows_BK = without_own(similarities_BK, rows_BK, own_rows_B, self._k)
        there_BK = rows_BK >= 0
        found_BK = np.where(there_BK, self._gallery_labels_G[rows_BK], -1)
        self._hits += [int(recall_at_k(found_BK, labels_B, k).sum()) for k in _RECALLS]
        known_B = there_BK[:, 0] & (similarities_BK[:, 0] >= self._threshold)
        self._unknown += int((~known_B).sum())
        self.worst.add(self._seen, labels_B, rows_BK, found_BK, similarities_BK)
        # Half the width: they are all that is kept of every query.
        self._labels.append(labels_B.astype(np.int32))
        self._predicted.append(found_BK[:, 0].astype(np.int32))
        self._seen += len(labels_B)
        return rows_BK

    def labels(self) -> Labels:
        """Return the class of every query."""
        return np.concatenate(self._labels).astype(np.int64)

    def predicted(self) -> Labels:
        """Return the class every query was answered with; -1: none."""
        return np.concatenate(self._predicted).astype(np.int64)

    def metrics(self) -> dict[str, float]:
        """Return Recall@k, the share answered "unknown", and the number of queries."""
        recalls = {
            f"recall_at_{k}": int(hits) / self._seen
            for k, hits in zip(_RECALLS, self._hits, strict=True)
        }
        return recalls | {"unknown_rate": self._unknown / self._seen, "num_queries": self._seen}

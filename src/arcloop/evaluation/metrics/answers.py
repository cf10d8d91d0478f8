"""What a user is answered: measured through the index that will be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.leave_one_out import without_own
from arcloop.evaluation.metrics.query_sums import QuerySums
from arcloop.evaluation.metrics.retrieval_metrics import hits_at_k
from arcloop.evaluation.mistakes import WorstMistakes

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Search = Callable[[Embeddings, int], tuple[Embeddings, Labels]]
"""Embeddings [B, D] and k -> similarities and gallery rows [B, k], nearest first; row -1: none."""

_RECALL_AT = (1, 5, 10)
_PRECISION_AT = (5, 10)


@dataclass
class AnswerCounts:
    """What was counted of some queries; parts of a split are merged in its order.

    Attributes:
        worst: The worst mistakes.
        hits: Recall@k and Precision@k.
        unknown: Queries answered "unknown".
        labels: Class of every query, by batch; half the width: they are kept of every query.
        predicted: Class it was answered with, by batch; -1: none.
    """

    worst: WorstMistakes
    hits: QuerySums = field(default_factory=QuerySums)
    unknown: int = 0
    labels: list[npt.NDArray[np.int32]] = field(default_factory=list)
    predicted: list[npt.NDArray[np.int32]] = field(default_factory=list)

    def merge(self, other: AnswerCounts) -> None:
        """Count the queries that follow too."""
        self.worst.merge(other.worst)
        self.hits.merge(other.hits)
        self.unknown += other.unknown
        self.labels += other.labels
        self.predicted += other.predicted

    def label_of_queries(self) -> Labels:
        """Return the class of every query."""
        return np.concatenate(self.labels).astype(np.int64)

    def answer_to_queries(self) -> Labels:
        """Return the class every query was answered with; -1: none."""
        return np.concatenate(self.predicted).astype(np.int64)

    def metrics(self) -> dict[str, float]:
        """Return Recall@k, Precision@k, the share answered "unknown", and the number of queries."""
        seen = sum(map(len, self.labels))
        return {
            **self.hits.means(seen),
            "unknown_rate": self.unknown / seen,
            "num_queries": seen,
        }


class Answers:
    """Asks the index about batch after batch of queries and keeps count.

    Args:
        search: The index.
        gallery_labels_G: Class of every gallery row.
        k: Neighbours asked for.
        threshold: Similarity under which an answer is "unknown".
        num_mistakes: Worst mistakes kept.
        first_row: Row of the first query in the query split.

    Attributes:
        counts: What was counted.
    """

    def __init__(
        self,
        search: Search,
        gallery_labels_G: Labels,
        *,
        k: int,
        threshold: float,
        num_mistakes: int,
        first_row: int = 0,
    ) -> None:
        self.counts = AnswerCounts(WorstMistakes(num_mistakes))
        self._search = search
        self._gallery_labels_G = gallery_labels_G
        self._k = k
        self._threshold = threshold
        self._row = first_row

    def add(self, embeddings_BD: Embeddings, labels_B: Labels, own_rows_B: Labels) -> Labels:
        """Ask about the next queries and return the gallery rows found, [B, k].

        Args:
            embeddings_BD: float32, rows of norm 1.
            labels_B: Their classes.
            own_rows_B: The gallery row that is the query itself, and no answer; -1: none.
        """
        itself = bool((own_rows_B >= 0).any())
        similarities_BK, rows_BK = self._search(embeddings_BD, self._k + itself)
        if itself:
            similarities_BK, rows_BK = without_own(similarities_BK, rows_BK, own_rows_B, self._k)
        there_BK = rows_BK >= 0
        found_BK = np.where(there_BK, self._gallery_labels_G[rows_BK], -1)
        counts = self.counts
        counts.hits.add(hits_at_k(found_BK, labels_B, _RECALL_AT, _PRECISION_AT))
        known_B = there_BK[:, 0] & (similarities_BK[:, 0] >= self._threshold)
        counts.unknown += int((~known_B).sum())
        counts.worst.add(self._row, labels_B, rows_BK, found_BK, similarities_BK)
        counts.labels.append(labels_B.astype(np.int32))
        counts.predicted.append(found_BK[:, 0].astype(np.int32))
        self._row += len(labels_B)
        return rows_BK

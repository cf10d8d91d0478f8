"""Metrics of the answers of the index: Recall@k, rate of "unknown", confusion and worst mistakes.

Shapes: Q queries, B queries of a batch, K neighbours, C classes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.retrieval import Bools, MetricSums, recall_and_precision
from arcloop.evaluation.mistakes import Mistake
from arcloop.retrieval.embed import Embeddings, Labels

_RECALL_AT = (1, 5, 10)
_PRECISION_AT = (5, 10)
_MAX_TABLE_CLASSES, _MAX_PAIRS = 1000, 100


@dataclass
class AnswerMetrics:
    """State of the metrics of the index's answers; the states of several processes can be merged.

    Attributes:
        num_mistakes: Number of mistakes kept.
        threshold: Similarity below which the answer is "unknown".
        hits: Sums of Recall@k and Precision@k.
        num_unknown: Queries answered with "unknown".
        mistakes: The wrong answers with the highest similarity, most similar first. Queries without
            a neighbour are not included.
        labels: Class of every query, by batch; int32 to halve the memory.
        predicted: Class of the nearest neighbour, by batch; -1: no neighbour.
    """

    num_mistakes: int
    threshold: float
    hits: MetricSums = field(default_factory=MetricSums)
    num_unknown: int = 0
    mistakes: list[Mistake] = field(default_factory=list)
    labels: list[npt.NDArray[np.int32]] = field(default_factory=list)
    predicted: list[npt.NDArray[np.int32]] = field(default_factory=list)

    def update(
        self, first_row: int, labels_B: Labels, similarities_BK: Embeddings, rows_BK: Labels,
        neighbour_labels_BK: Labels,
    ) -> None:  # fmt: skip
        """Add the answers to a batch of queries.

        Args:
            first_row: Row of the first query in the query split.
            labels_B: Class of each query.
            similarities_BK: Cosines of the neighbours, best first.
            rows_BK: Gallery rows of the neighbours; -1: none.
            neighbour_labels_BK: Their classes; -1: none.
        """
        self.hits.update(
            recall_and_precision(neighbour_labels_BK, labels_B, _RECALL_AT, _PRECISION_AT)
        )
        found_B = rows_BK[:, 0] >= 0
        known_B = found_B & (similarities_BK[:, 0] >= self.threshold)
        self.num_unknown += int((~known_B).sum())
        wrong = np.flatnonzero((neighbour_labels_BK[:, 0] != labels_B) & found_B)
        worst = wrong[np.argsort(-similarities_BK[wrong, 0], kind="stable")][: self.num_mistakes]
        self._keep(
            [
                _mistake(
                    first_row + query, labels_B[query], similarities_BK[query], rows_BK[query],
                    neighbour_labels_BK[query],
                )
                for query in worst.tolist()
            ]
        )  # fmt: skip
        self.labels.append(labels_B.astype(np.int32))
        self.predicted.append(neighbour_labels_BK[:, 0].astype(np.int32))

    def merge(self, other: AnswerMetrics) -> None:
        """Add the answers of another process, whose queries follow those of this one."""
        self.hits.merge(other.hits)
        self.num_unknown += other.num_unknown
        self._keep(other.mistakes)
        self.labels += other.labels
        self.predicted += other.predicted

    def _keep(self, new: list[Mistake]) -> None:
        self.mistakes = heapq.nsmallest(
            self.num_mistakes, [*self.mistakes, *new], key=lambda m: (-m.similarity, m.query_row)
        )

    def answers(self) -> tuple[Labels, Labels]:
        """Return the class and the predicted class of every query, int64 [Q]."""
        return (
            np.concatenate(self.labels).astype(np.int64),
            np.concatenate(self.predicted).astype(np.int64),
        )

    def compute(self) -> dict[str, float]:
        """Return Recall@k, Precision@k, the rate of "unknown" and the number of queries."""
        num_queries = sum(map(len, self.labels))
        return {
            **self.hits.means(num_queries),
            "unknown_rate": self.num_unknown / num_queries,
            "num_queries": num_queries,
        }


def _mistake(
    row: int, label: int, similarities_K: Embeddings, rows_K: Labels, labels_K: Labels
) -> Mistake:
    found_K = rows_K >= 0
    return Mistake(
        query_row=row,
        label=int(label),
        predicted=int(labels_K[0]),
        similarity=float(similarities_K[0]),
        neighbour_rows=tuple(rows_K[found_K].tolist()),
        neighbour_labels=tuple(labels_K[found_K].tolist()),
        neighbour_similarities=tuple(similarities_K[found_K].tolist()),
    )


def exclude_own_rows(
    similarities_BK: Embeddings, rows_BK: Labels, own_rows_B: Labels, k: int
) -> tuple[Embeddings, Labels]:
    """Remove each query from its own neighbours; if it is not among them, remove the last one.

    Args:
        similarities_BK: Cosines of the neighbours, best first.
        rows_BK: Their gallery rows, K > k; -1: none.
        own_rows_B: Row of each query in the gallery; -1: the query is not in the gallery.
        k: Number of neighbours to return.

    Returns:
        Similarities and rows [B, k].

    >>> similarities = np.array([[1.0, 0.5, 0.2], [0.9, 0.5, 0.2]], np.float32)
    >>> rows = np.array([[4, 7, 1], [4, 7, 1]])
    >>> exclude_own_rows(similarities, rows, np.array([4, -1]), k=2)[1].tolist()
    [[7, 1], [4, 7]]
    """
    own_BK = (rows_BK == own_rows_B[:, None]) & (rows_BK >= 0)
    order_BK = np.argsort(own_BK, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(similarities_BK, order_BK, axis=1),
        np.take_along_axis(rows_BK, order_BK, axis=1),
    )


@dataclass(frozen=True)
class Confusion:
    """Counts of answers by true class.

    Attributes:
        total: int64 [C], queries of each class.
        right: int64 [C], queries of each class that were answered correctly.
        labels: Classes of the table, ascending: all evaluated classes, or the thousand classes with
            the most mistakes if there are more.
        counts: int64 [len(labels), len(labels)], rows true class, columns predicted class, without
            the queries for which the index found no neighbour.
        pairs: (true class, predicted class, count) of the most frequent mistakes of all classes.
    """

    total: Labels
    right: Labels
    labels: Labels
    counts: Labels
    pairs: list[tuple[int, int, int]]

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Accuracy of each class in [0, 1]; NaN for a class without queries."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.right / self.total, dtype=np.float64)


def confusion(
    labels_Q: Labels,
    predicted_Q: Labels,
    num_classes: int,
    *,
    max_classes: int = _MAX_TABLE_CLASSES,
    evaluated_C: Bools | None = None,
) -> Confusion:
    """Count answers by true class.

    Args:
        labels_Q: True class, in [0, num_classes).
        predicted_Q: Predicted class; -1: none.
        num_classes: C.
        max_classes: Maximum number of classes in the table; its size is quadratic in this number.
        evaluated_C: Classes that the table may contain; None: all. With class-disjoint splits, the
            classes of train are not evaluated.

    >>> table = confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
    >>> table.counts.tolist(), table.accuracy.tolist(), table.pairs
    ([[1, 1], [0, 1]], [0.5, 1.0], [(0, 1, 1)])
    """
    right_Q = labels_Q == predicted_Q
    wrong_Q = ~right_Q & (predicted_Q >= 0)
    true_W, predicted_W = labels_Q[wrong_Q], predicted_Q[wrong_Q]
    mistakes_C = np.bincount(np.concatenate([true_W, predicted_W]), minlength=num_classes)
    order = np.argsort(-mistakes_C, kind="stable")
    if evaluated_C is not None:
        order = order[evaluated_C[order]]
    labels = np.sort(order[:max_classes])
    size = len(labels)
    position_C = np.full(num_classes, -1)
    position_C[labels] = np.arange(size)
    true_Q, answer_Q = position_C[labels_Q], position_C[predicted_Q]
    shown_Q = (true_Q >= 0) & (answer_Q >= 0) & (predicted_Q >= 0)
    cells = true_Q[shown_Q] * size + answer_Q[shown_Q]
    return Confusion(
        total=np.bincount(labels_Q, minlength=num_classes),
        right=np.bincount(labels_Q[right_Q], minlength=num_classes),
        labels=labels,
        counts=np.bincount(cells, minlength=size**2).reshape(size, size),
        pairs=_most_frequent(true_W, predicted_W, num_classes),
    )


def _most_frequent(
    true_W: Labels, predicted_W: Labels, num_classes: int
) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, count) of the most frequent of W wrong answers."""
    codes, counts = np.unique(true_W * num_classes + predicted_W, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MAX_PAIRS]
    rows, columns = np.divmod(codes[order], num_classes)
    return list(zip(rows.tolist(), columns.tolist(), counts[order].tolist(), strict=True))

"""The mistakes a person should look at first."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mistake:
    """A query answered with the wrong class.

    Attributes:
        query_row: Its row in the query split.
        label: Its class.
        predicted: Class of the nearest gallery row the index found.
        similarity: Cosine to that row.
        neighbour_rows: Gallery rows the index found, nearest first.
        neighbour_labels: Their classes.
        neighbour_similarities: Their cosines.
    """

    query_row: int
    label: int
    predicted: int
    similarity: float
    neighbour_rows: tuple[int, ...]
    neighbour_labels: tuple[int, ...]
    neighbour_similarities: tuple[float, ...]


class WorstMistakes:
    """Keeps the mistakes the model was surest of: those with the most similar wrong neighbour.

    Of equally sure ones, the earlier query comes first. A query with no neighbour at all is no
    answer and hence not among them.

    Args:
        count: Mistakes kept.

    Attributes:
        found: Those kept, worst first.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.found: list[Mistake] = []

    def add(
        self,
        first_row: int,
        labels_B: Labels,
        rows_BK: Labels,
        neighbour_labels_BK: Labels,
        similarities_BK: npt.NDArray[np.float32],
    ) -> None:
        """Look through the answers to queries from `first_row` on.

        Args:
            first_row: Row of the first of these queries in the query split.
            labels_B: True classes.
            rows_BK: Gallery rows found, nearest first; -1: none.
            neighbour_labels_BK: Their classes.
            similarities_BK: Their cosines.
        """
        wrong = np.flatnonzero((neighbour_labels_BK[:, 0] != labels_B) & (rows_BK[:, 0] >= 0))
        worst = wrong[np.argsort(-similarities_BK[wrong, 0], kind="stable")][: self._count]
        new = []
        for query in worst.tolist():
            there = rows_BK[query] >= 0
            new.append(
                Mistake(
                    query_row=first_row + query,
                    label=int(labels_B[query]),
                    predicted=int(neighbour_labels_BK[query, 0]),
                    similarity=float(similarities_BK[query, 0]),
                    neighbour_rows=tuple(rows_BK[query][there].tolist()),
                    neighbour_labels=tuple(neighbour_labels_BK[query][there].tolist()),
                    neighbour_similarities=tuple(similarities_BK[query][there].tolist()),
                )
            )
        self._keep(new)

    def merge(self, other: WorstMistakes) -> None:
        """Look through what another part of the queries kept."""
        self._keep(other.found)

    def _keep(self, new: list[Mistake]) -> None:
        self.found = heapq.nsmallest(
            self._count, [*self.found, *new], key=lambda m: (-m.similarity, m.query_row)
        )

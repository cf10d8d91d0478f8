"""Gallery rows with equal embeddings, and their order in the answers of an index.

Shapes: M rows that have an equal row, Q queries, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EqualRows:
    """The rows of a gallery whose embedding occurs more than once.

    Attributes:
        rows: int64 [M], ascending.
        lowest: int64 [M], the lowest row with the same embedding.
    """

    rows: Rows
    lowest: Rows

    @classmethod
    def from_groups(cls, groups: Sequence[Sequence[int]]) -> EqualRows:
        """Return the inverse of `groups`."""
        lowest = [(min(group), group) for group in groups]
        pairs = sorted((row, first) for first, group in lowest for row in group)
        rows_M2 = np.array(pairs, np.int64).reshape(-1, 2)
        return cls(rows_M2[:, 0], rows_M2[:, 1])

    def groups(self) -> list[list[int]]:
        """Return the rows of each group, ascending.

        >>> EqualRows(np.array([2, 5, 7, 9]), np.array([2, 5, 2, 5])).groups()
        [[2, 7], [5, 9]]
        """
        lowest, rows = self._by_group
        starts = np.flatnonzero(np.diff(lowest)) + 1
        return [part.tolist() for part in np.split(rows, starts) if len(part)]

    @cached_property
    def _by_group(self) -> tuple[Rows, Rows]:
        """`lowest` and `rows`, sorted by group; computed once, because each answer needs it."""
        order = np.argsort(self.lowest, kind="stable")
        return self.lowest[order], self.rows[order]

    def prefer_lowest(self, rows_QK: Rows) -> Rows:
        """Replace the rows of each group that were found by the lowest rows of the group.

        Equal rows are equally similar to any query, so that the lowest of them are the right
        answer. An index may return others, because its products differ in the last bit.

        Args:
            rows_QK: Gallery rows, most similar first; -1: none.

        Returns:
            int64 [Q, K]; the rows of a group are ascending, in the places of those found.

        >>> equal = EqualRows.from_groups([[2, 7, 8], [5, 9]])
        >>> equal.prefer_lowest(np.array([[8, 9, 1, 7], [5, -1, -1, -1]])).tolist()
        [[2, 5, 1, 7], [5, -1, -1, -1]]
        """
        if not len(self.rows):
            return rows_QK
        at_QK = np.minimum(np.searchsorted(self.rows, rows_QK), len(self.rows) - 1)
        equal_QK = self.rows[at_QK] == rows_QK
        group_QK = np.where(equal_QK, self.lowest[at_QK], -1)
        # The place of an answer among those of its group: its distance from the first of them.
        sorting_QK = np.argsort(group_QK, axis=1, kind="stable")
        sorted_QK = np.take_along_axis(group_QK, sorting_QK, axis=1)
        number_QK = np.broadcast_to(np.arange(rows_QK.shape[1]), rows_QK.shape)
        first_QK = np.where(np.diff(sorted_QK, axis=1, prepend=-2) != 0, number_QK, 0)
        place_QK = np.empty_like(rows_QK)
        places_QK = number_QK - np.maximum.accumulate(first_QK, axis=1)
        np.put_along_axis(place_QK, sorting_QK, places_QK, axis=1)
        lowest, members = self._by_group
        start_QK = np.searchsorted(lowest, group_QK)
        chosen_QK = members[np.minimum(start_QK + place_QK, len(members) - 1)]
        return np.where(equal_QK, chosen_QK, rows_QK)

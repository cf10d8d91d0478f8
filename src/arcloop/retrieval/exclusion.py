"""Gallery rows that are not compared with a query: its own row, and the rows of its group.

Shapes: Q queries, B queries of a block, G gallery rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.retrieval.embed import Labels

Cells = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Excluded:
    """The gallery rows that are no neighbours of each query.

    Attributes:
        own_rows: int64 [Q], row of each query in the gallery; -1: the query is not in the gallery.
        query_groups: int64 [Q], group of each query, such as a video; -1: none. None: rows of the
            query's group are neighbours.
        gallery_groups: int64 [G], group of each gallery row; None only with `query_groups`.
    """

    own_rows: Labels
    query_groups: Labels | None = None
    gallery_groups: Labels | None = None

    def take(self, queries: slice | npt.NDArray[np.intp]) -> Excluded:
        """Return the same for some of the queries."""
        groups_Q = None if self.query_groups is None else self.query_groups[queries]
        return Excluded(self.own_rows[queries], groups_Q, self.gallery_groups)

    def cells(self, block: slice, first_row: int, columns: int) -> Cells:
        """Find the cells of a block of similarities that compare a query with an excluded row.

        Args:
            block: The queries of the block, B.
            first_row: Gallery row of the block's first column.
            columns: Number of columns of the block, N.

        Returns:
            Row and column indices into the block [B, N].

        >>> groups = np.array([4, 4, -1, 9])
        >>> excluded = Excluded(np.array([1, -1, 2]), np.array([4, 9, -1]), groups)
        >>> [indices.tolist() for indices in excluded.cells(slice(0, 3), 1, 3)]
        [[0, 1, 2], [0, 2, 1]]
        """
        own_B = self.own_rows[block]
        column_B = own_B - first_row
        queries = np.flatnonzero((own_B >= 0) & (column_B >= 0) & (column_B < columns))
        if self.query_groups is None or self.gallery_groups is None:
            return queries, column_B[queries]
        groups_B = self.query_groups[block]
        groups_N = self.gallery_groups[first_row : first_row + columns]
        excluded_BN = (groups_B[:, None] == groups_N) & (groups_B >= 0)[:, None]
        excluded_BN[queries, column_B[queries]] = True
        query, column = excluded_BN.nonzero()
        return query, column

    def contains(self, rows_QK: Labels) -> npt.NDArray[np.bool_]:
        """Return whether each gallery row, [Q, K], is excluded for its query; -1, no row: not."""
        excluded_QK = rows_QK == self.own_rows[:, None]
        if self.query_groups is not None and self.gallery_groups is not None:
            groups_Q1 = self.query_groups[:, None]
            excluded_QK |= (self.gallery_groups[rows_QK] == groups_Q1) & (groups_Q1 >= 0)
        return np.asarray(excluded_QK & (rows_QK >= 0))

    def count_of_class(self, labels_Q: Labels, labels_G: Labels) -> Labels:
        """Return the number of excluded rows of each query that have its class.

        Args:
            labels_Q: Class of each query. The own row of a query has the same class.
            labels_G: Class of each gallery row.

        >>> excluded = Excluded(np.array([0, -1]), np.array([4, 4]), np.array([4, 4, 4]))
        >>> excluded.count_of_class(np.array([0, 1]), np.array([0, 0, 1])).tolist()
        [2, 1]
        """
        has_own_Q = self.own_rows >= 0
        if self.query_groups is None or self.gallery_groups is None:
            return has_own_Q.astype(np.int64)
        groups_Q, groups_G = self.query_groups, self.gallery_groups
        rows = np.flatnonzero(np.isin(groups_G, groups_Q[groups_Q >= 0]))
        pairs_G2 = np.stack([groups_G[rows], labels_G[rows]], axis=1)
        pairs_Q2 = np.stack([groups_Q, labels_Q], axis=1)
        _, code, count = np.unique(
            np.concatenate([pairs_Q2, pairs_G2]), axis=0, return_inverse=True, return_counts=True
        )
        code_Q = code[: len(labels_Q)]
        of_queries = np.bincount(code_Q, minlength=len(count))
        of_group_Q = np.where(groups_Q >= 0, (count - of_queries)[code_Q], 0)
        own_in_group_Q = has_own_Q & (groups_Q >= 0) & (groups_G[self.own_rows] == groups_Q)
        return np.asarray(of_group_Q + has_own_Q - own_in_group_Q)

    @property
    def most(self) -> int:
        """Maximum number of rows that are excluded for one query."""
        own = int((self.own_rows >= 0).any())
        if self.query_groups is None or self.gallery_groups is None:
            return own
        shared = np.isin(self.gallery_groups, self.query_groups[self.query_groups >= 0])
        _, count = np.unique(self.gallery_groups[shared], return_counts=True)
        return own + int(count.max(initial=0))

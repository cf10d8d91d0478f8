"""Gallery rows that are not compared with a query: its own row, and the rows of its group.

Shapes: Q queries, B queries of a block, G gallery rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.data import Store
from arcloop.errors import ConfigError
from arcloop.retrieval.embed import Embeddings, Labels

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

    def remove(
        self, sim_QK: Embeddings, rows_QK: Labels, k: int
    ) -> tuple[npt.NDArray[np.floating], Labels]:
        """Return the first k neighbours that are not excluded.

        Args:
            sim_QK: Similarities of the neighbours, nearest first.
            rows_QK: Their gallery rows; -1: none.
            k: Number of neighbours to keep, at most K.

        Returns:
            Similarities and rows, [Q, k]; -inf and -1 if there are fewer neighbours.

        >>> excluded = Excluded(np.array([4]))
        >>> excluded.remove(np.array([[0.9, 0.8, 0.7]]), np.array([[2, 4, 5]]), k=2)
        (array([[0.9, 0.7]]), array([[2, 5]]))
        """
        excluded_QK = rows_QK == self.own_rows[:, None]
        if self.query_groups is not None and self.gallery_groups is not None:
            groups_Q1 = self.query_groups[:, None]
            excluded_QK |= (self.gallery_groups[rows_QK] == groups_Q1) & (groups_Q1 >= 0)
        excluded_QK &= rows_QK >= 0
        sim_QK = np.where(excluded_QK, sim_QK.dtype.type(-np.inf), sim_QK)
        rows_QK = np.where(excluded_QK, -1, rows_QK)
        order_Qk = np.argsort(excluded_QK, axis=1, kind="stable")[:, :k]
        rows_Qk = np.take_along_axis(rows_QK, order_Qk, axis=1)
        return np.take_along_axis(sim_QK, order_Qk, axis=1), rows_Qk

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


def require_groups(images: Store, gallery_images: Store) -> Labels:
    """Return the groups of the gallery with which the queries of a store are compared.

    Raises:
        ConfigError: The store has no groups, or the gallery is from another store, whose groups
            have other numbers.
    """
    groups_G = images.groups("gallery")
    if groups_G is None or images is not gallery_images:
        raise ConfigError(
            "evaluate.exclude_same_group=true needs query and gallery of one store with groups",
            where=images.artifact.path,
            remedy="prepare the data with a group for each image, or set it to false",
        )
    return groups_G

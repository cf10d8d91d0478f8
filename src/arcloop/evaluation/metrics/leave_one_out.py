"""Queries that are themselves in the gallery: none may be its own answer.

Shapes: B queries, N gallery rows of a block, K ranks. `own_rows_B` is the gallery row that is the
query itself; -1: it is not in the gallery.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

LAST = np.float32(-1.5)
"""A similarity under that of any other row, which `Nearest` can still hold."""


def no_own_rows(queries: int) -> Labels:
    """Return own rows of queries that are not in the gallery."""
    return np.full(queries, -1, np.int64)


def own_cells(
    own_rows_B: Labels, first_row: int, columns: int
) -> tuple[npt.NDArray[np.intp], Labels]:
    """Find queries that meet themselves in a block of gallery rows.

    Args:
        own_rows_B: Own row of each query.
        first_row: Gallery row of the block's first column.
        columns: Its columns.

    Returns:
        The queries, and the column of each: an index into the block [B, columns].

    >>> queries, places = own_cells(np.array([7, -1, 2]), first_row=5, columns=4)
    >>> queries.tolist(), places.tolist()
    ([0], [2])
    """
    place_B = own_rows_B - first_row
    queries = np.flatnonzero((place_B >= 0) & (place_B < columns) & (own_rows_B >= 0))
    return queries, place_B[queries]


def without_own(
    similarities_BK: Floats, rows_BK: Labels, own_rows_B: Labels, k: int
) -> tuple[Floats, Labels]:
    """Take a query out of its own answers; where it is not among them, the last goes.

    Args:
        similarities_BK: Of the rows, falling.
        rows_BK: Gallery rows that were found, K > k; -1: none.
        own_rows_B: Own row of each query.
        k: Ranks wanted.

    Returns:
        Similarities and rows [B, k].

    >>> similarities = np.array([[1.0, 0.5, 0.2], [0.9, 0.5, 0.2]], np.float32)
    >>> rows = np.array([[4, 7, 1], [4, 7, 1]])
    >>> without_own(similarities, rows, np.array([4, -1]), k=2)[1].tolist()
    [[7, 1], [4, 7]]
    """
    own_BK = (rows_BK == own_rows_B[:, None]) & (rows_BK >= 0)
    order_BK = np.argsort(own_BK, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(similarities_BK, order_BK, axis=1),
        np.take_along_axis(rows_BK, order_BK, axis=1),
    )

"""Queries that are themselves in the gallery: none may be its own answer.

Shapes: B queries, N gallery rows of a block, K ranks. `own_rows_B` is the gallery row that is the
query itself; -1: it is not in the gallery.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def no_own_rows(queries: int) -> Labels:
    """Return own rows of queries that are not in the gallery."""
    return np.full(queries, -1, np.int64)


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

"""Equal rows of a gallery: how to find them, and similarities that are equal for equal rows.

The rounding of a float32 matrix product depends on the block shape, on the position in the block
and on the processor. The products of two equal rows may therefore differ in the last bit.

Shapes: B queries, N gallery rows of a chunk, D dimensions, G gallery rows, M equal rows.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from arcloop.retrieval.embed import Chunks, Embeddings
from arcloop.runtime.equal_rows import EqualRows, Rows

Floats = npt.NDArray[np.float64]

_STEP = 2.0**-26
_COLUMNS = 256  # computed at a time
_COMPARED = 16  # numbers of an embedding by which rows are preselected


def find_equal_rows(gallery: Chunks) -> EqualRows:
    """Find the rows of a gallery whose embedding occurs more than once, bit by bit.

    The gallery is read once, and a second time if there may be equal rows.

    Args:
        gallery: Returns an iterator over (float32 [N, D], int64 [N]) in row order.

    >>> rows = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
    >>> find_equal_rows(lambda: [(rows, np.arange(4))]).groups()
    [[0, 2]]
    """
    folded = [
        np.bitwise_xor.reduce(_bits(rows_ND[:, :_COMPARED]), axis=1) for rows_ND, _ in gallery()
    ]
    _, value_G, count = np.unique(
        np.concatenate(folded or [np.empty(0, np.uint32)]), return_inverse=True, return_counts=True
    )
    candidates = np.flatnonzero(count[value_G] > 1)
    if not len(candidates):
        return EqualRows(candidates, candidates)
    first_row, digests = 0, bytearray()
    for rows_ND, _ in gallery():
        first, last = np.searchsorted(candidates, [first_row, first_row + len(rows_ND)])
        for row_D in _bits(rows_ND[candidates[first:last] - first_row]):
            digests += hashlib.blake2b(row_D.tobytes(), digest_size=8).digest()
        first_row += len(rows_ND)
    # A stable sort puts the lowest row of each group first.
    _, first, value_M, count = np.unique(
        np.frombuffer(digests, np.uint64),
        return_index=True, return_inverse=True, return_counts=True,
    )  # fmt: skip
    equal_M = count[value_M] > 1
    return EqualRows(candidates[equal_M], candidates[first[value_M]][equal_M])


def _bits(rows_ND: Embeddings) -> npt.NDArray[np.uint32]:
    return (rows_ND + np.float32(0)).view(np.uint32)  # adding zero turns -0.0 into 0.0


def set_equal_products(
    sim_BN: Embeddings, queries_BD: Embeddings, rows_ND: Embeddings, first_row: int, equal: Rows
) -> None:
    """Replace the products of equal rows by values that depend on query and row only.

    Args:
        sim_BN: float32 products, changed in place.
        queries_BD: float32, rows of norm 1.
        rows_ND: float32, rows of norm 1.
        first_row: Gallery row of the first row.
        equal: Gallery rows that have an equal row, ascending.
    """
    first, last = np.searchsorted(equal, [first_row, first_row + len(rows_ND)])
    if first == last:
        return
    rounded_BD = rounded(queries_BD)
    for start in range(first, last, _COLUMNS):
        columns = equal[start : min(start + _COLUMNS, last)] - first_row
        sim_BN[:, columns] = rounded_BD @ rounded(rows_ND[columns]).T


def rounded(rows_ND: Embeddings) -> Floats:
    """Round embeddings such that float64 products of them have no rounding error.

    The values become multiples of 2**-26, which is finer than the rounding of a float32 product.
    Their products are multiples of 2**-52, and so are partial sums of products, which are less than
    2 for vectors of norm 1. float64 represents all of these exactly, in any order of summation.

    >>> float(rounded(np.float32([0.1]))[0] * 2**26)
    6710886.0
    """
    return np.asarray(np.rint(rows_ND * np.float64(1 / _STEP)) * _STEP)

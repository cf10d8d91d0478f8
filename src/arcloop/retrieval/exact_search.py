"""Exact cosine search: every query against every gallery row, in bounded memory, on several cores.

`scan_gallery` computes the similarities block by block, `TopK` keeps the largest of them, and
`top_k` combines the two. All exact searches of arcloop use this module.

Shapes: Q queries, B queries of a block, N gallery rows of a block, D dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from arcloop.errors import DataError
from arcloop.retrieval.duplicates import find_equal_rows, set_equal_products
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch
from arcloop.retrieval.exclusion import Excluded

T = TypeVar("T")
Floats = npt.NDArray[np.float64]
Visitor = Callable[[slice, int, Embeddings, Labels], None]
"""Takes the slice of queries, the first gallery row, cosines [B, N] and labels [N] of a block."""

EXCLUDED = np.float32(-1.5)
"""Similarity that replaces that of a query to an excluded gallery row, so that it ranks last."""
_MEMORY_MB = 64
_MAX_THREADS = 8  # constant, because the rounding of a matrix product depends on the block shape
_BLOCK_QUERIES, _BLOCK_CELLS = 512, 2**19  # 2 MiB of similarities fit in the cache of a core
_BYTES_PER_CELL, _BYTES_PER_NEIGHBOUR = 15, 64
_BATCH_QUERIES, _READ_ROWS = 4096, 8192  # queries scanned together, gallery rows read at a time
_STEP = 2.0**-30  # resolution of a ranking key, finer than the rounding of a float32 dot product
_LAST_KEY = np.iinfo(np.int64).max


class BlockShape(NamedTuple):
    """Sizes of the blocks of a scan. They do not depend on the machine.

    Attributes:
        batch: Queries scanned together.
        queries: Queries of a block, B.
        columns: Gallery rows of a block, N.
    """

    batch: int
    queries: int
    columns: int


def block_shape(memory_mb: float, k: int = 0, batch: int = _BATCH_QUERIES) -> BlockShape:
    """Choose block sizes that keep a scan within a memory limit.

    Args:
        memory_mb: Limit in MiB for 8 threads, without the queries and the gallery chunk.
        k: Neighbours kept per query.
        batch: Number of queries available at a time.

    Returns:
        Sizes of at least 1.

    >>> block_shape(64), block_shape(64, batch=512).columns, block_shape(64, k=50_000).batch
    (BlockShape(batch=4096, queries=512, columns=1024), 8192, 20)
    """
    size = int(memory_mb * 2**20)
    batch = max(1, min(batch, _BATCH_QUERIES, size // (8 * 8 * max(k, 1))))
    block_bytes = (size - 8 * batch * k) // _MAX_THREADS  # neighbours take at most 3/4 of it
    most_queries = max(1, block_bytes * 3 // 4 // (_BYTES_PER_NEIGHBOUR * max(k, 1)))
    blocks = max(_MAX_THREADS, -(-batch // min(_BLOCK_QUERIES, most_queries)))
    queries = -(-batch // blocks)
    cell_bytes = block_bytes // queries - _BYTES_PER_NEIGHBOUR * k
    columns = min(_READ_ROWS, _BLOCK_CELLS // queries, cell_bytes // _BYTES_PER_CELL)
    return BlockShape(batch, queries, max(1, columns))


def scan_gallery(
    visit: Visitor, queries_QD: Embeddings, gallery: Chunks, shape: BlockShape,
    finish: Callable[[slice], T] | None = None, equal_rows: Labels | None = None,
) -> list[T]:  # fmt: skip
    """Compute the cosines of queries with the whole gallery, one block at a time.

    The gallery is read once for each batch of queries. Up to 8 threads work on different blocks of
    queries, and each visits the gallery in row order.

    Args:
        visit: Called with every block; it may change the similarities.
        queries_QD: float32, rows of norm 1.
        gallery: Returns an iterator over the gallery in row order, in chunks of any length.
        shape: Block sizes.
        finish: Called with each slice of queries after its last block was visited.
        equal_rows: Gallery rows that have an equal row, ascending: their similarities are computed
            such that equal rows are equally similar to a query. None: they differ by rounding.

    Returns:
        Results of `finish`, in the order of the queries.

    Raises:
        DataError: An embedding is not finite.
    """
    read_rows = max(1, _READ_ROWS // shape.columns) * shape.columns

    def visit_chunk(first_row: int, rows_ND: Embeddings, labels_N: Labels, block: slice) -> None:
        for start in range(0, len(rows_ND), shape.columns):
            columns = slice(start, start + shape.columns)
            sim_BN = queries_QD[block] @ rows_ND[columns].T
            _require_finite(sim_BN, queries_QD[block], first_row + start)
            if equal_rows is not None:
                set_equal_products(
                    sim_BN, queries_QD[block], rows_ND[columns], first_row + start, equal_rows
                )
            visit(block, first_row + start, sim_BN, labels_N[columns])

    results: list[T] = []
    threads = min(torch.get_num_threads(), _MAX_THREADS)
    # Each product uses one core: at this size, splitting it over cores takes longer than it saves.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for first_query in range(0, len(queries_QD), shape.batch):
            stop = min(first_query + shape.batch, len(queries_QD))
            starts = range(first_query, stop, shape.queries)
            blocks = [slice(start, min(start + shape.queries, stop)) for start in starts]
            first_row = 0
            for rows_ND, labels_N in rebatch(gallery(), read_rows):
                list(pool.map(partial(visit_chunk, first_row, rows_ND, labels_N), blocks))
                first_row += len(labels_N)
            if finish is not None:
                results += pool.map(finish, blocks)
    return results


def ranking_keys(similarities: npt.NDArray[np.floating], rows: Labels) -> Labels:
    """Return integers that sort gallery rows by descending similarity, then ascending row number.

    The upper 32 bits are the negated similarity in steps of 2**-30, the lower 32 bits the row.

    Args:
        similarities: Cosines, any shape.
        rows: int64 under 2**32, of a shape that broadcasts to that of the similarities.
    """
    keys = np.empty(similarities.shape, np.int64)
    np.multiply(similarities, np.float32(-1 / _STEP), out=keys, casting="unsafe")
    keys <<= 32
    keys |= rows
    return keys


class TopK:
    """Keeps the k most similar gallery rows of each query; ties rank by row number.

    Args:
        queries: Number of queries, B.
        k: Rows kept per query.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._keys = np.empty((queries, 0), np.int64)

    def add(self, first_row: int, sim_BN: Embeddings) -> None:
        """Add the similarities, float32 [B, N], of N gallery rows starting with `first_row`."""
        keys = np.concatenate([self._keys, self._candidates(first_row, sim_BN)], axis=1)
        if keys.shape[1] >= self._k:
            keys.partition(self._k - 1, axis=1)
            keys = keys[:, : self._k].copy()  # a view would keep the larger array alive
        self._keys = keys

    def _candidates(self, first_row: int, sim_BN: Embeddings) -> Labels:
        """Return the keys of all rows that may be among the k best, padded with the largest key."""
        queries, columns = sim_BN.shape
        rows_N = np.arange(first_row, first_row + columns)
        if self._keys.shape[1] < self._k:
            return ranking_keys(sim_BN, rows_N)
        # Keys are truncated towards zero, so the limit is one step below the worst kept key.
        worst_B = ((self._keys[:, -1] >> 32) + 1) * -_STEP
        limit_B = np.nextafter(worst_B.astype(np.float32), np.float32(-2))
        cells = np.flatnonzero(sim_BN >= limit_B[:, None])
        if len(cells) > sim_BN.size // 4:  # computing all keys is cheaper than selecting some
            return ranking_keys(sim_BN, rows_N)
        query, column = np.divmod(cells, columns)
        count_B = np.bincount(query, minlength=queries)
        slot = np.arange(len(cells)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        keys = np.full((queries, count_B.max(initial=0)), _LAST_KEY)
        keys[query, slot] = ranking_keys(sim_BN[query, column], rows_N[column])
        return keys

    def result(self) -> tuple[Floats, Labels]:
        """Return similarities float64, in steps of 2**-30, and rows int64, [B, k], best first."""
        self._keys.sort(axis=1)
        return np.asarray((self._keys >> 32) * -_STEP), self._keys & 0xFFFFFFFF


def exact_neighbours(
    queries_QD: Embeddings,
    gallery: Embeddings | Chunks,
    k: int,
    own_rows_Q: Labels | None = None,
    equal_rows: Labels | None = None,
) -> tuple[Embeddings, Labels]:
    """Find the k gallery rows with the highest cosine similarity to each query, in 64 MiB.

    Args:
        queries_QD: float32, rows of norm 1.
        gallery: float32 [G, D], rows of norm 1; or a function that returns an iterator over
            (embeddings, labels) in row order.
        k: Neighbours per query, at least 1.
        own_rows_Q: Leave-one-out: row of each query in the gallery, which is not returned; -1:
            none. None: no query is in the gallery.
        equal_rows: `find_equal_rows(gallery).rows`; None: they are found here, which reads the
            gallery once more.

    Returns:
        Similarities float32 [Q, k] and rows int64 [Q, k], best first. Equal similarities rank by
        row number, as do equal gallery rows, on any processor and in any blocks. Filled with -inf
        and -1 if the gallery has fewer than k rows.

    Raises:
        DataError: An embedding is not finite.

    >>> rows = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    >>> exact_neighbours(rows, rows, k=1, own_rows_Q=np.arange(3))[1].ravel().tolist()
    [1, 2, 1]
    """
    own_rows_Q = np.full(len(queries_QD), -1) if own_rows_Q is None else own_rows_Q
    sim_QK = np.full((len(queries_QD), k), -np.inf, np.float32)
    rows_QK = np.full((len(queries_QD), k), -1, np.int64)

    def keep(block: slice, sim_BK: Floats, rows_BK: Labels) -> None:
        sim_QK[block, : rows_BK.shape[1]] = sim_BK
        rows_QK[block, : rows_BK.shape[1]] = rows_BK

    rows = [] if callable(gallery) else [(gallery, np.zeros(len(gallery), np.int64))]
    chunks = gallery if callable(gallery) else partial(iter, rows)
    if equal_rows is None:
        equal_rows = find_equal_rows(chunks).rows
    shape = block_shape(_MEMORY_MB, k, len(queries_QD))
    top_k(keep, queries_QD, Excluded(own_rows_Q), chunks, k, shape, equal_rows=equal_rows)
    return sim_QK, rows_QK


def top_k(
    finish: Callable[[slice, Floats, Labels], T],
    queries_QD: Embeddings,
    excluded: Excluded,
    gallery: Chunks,
    k: int,
    shape: BlockShape,
    visit: Visitor | None = None,
    equal_rows: Labels | None = None,
) -> list[T]:
    """Find the k most similar gallery rows of each query, in blocks.

    Args:
        finish: Called with the slice of queries of each block, and the similarities and rows that
            `TopK.result` returns. Excluded rows have similarity -inf and row -1.
        queries_QD: float32, rows of norm 1.
        excluded: Rows that are no neighbours of a query.
        gallery: Returns an iterator over the gallery in row order.
        k: Rows kept per query.
        shape: Block sizes.
        visit: Called with every block of similarities.
        equal_rows: See `scan_gallery`.

    Returns:
        Results of `finish`, in the order of the queries.
    """
    top: dict[int, TopK] = {}

    def visit_block(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        if visit is not None:
            visit(block, first_row, sim_BN, labels_N)
        sim_BN[excluded.cells(block, first_row, len(labels_N))] = EXCLUDED
        top.setdefault(block.start, TopK(len(sim_BN), k)).add(first_row, sim_BN)

    def finish_block(block: slice) -> T:
        sim_BK, rows_BK = top.pop(block.start).result()
        excluded_BK = sim_BK == EXCLUDED
        sim_BK[excluded_BK], rows_BK[excluded_BK] = -np.inf, -1
        return finish(block, sim_BK, rows_BK)

    return scan_gallery(visit_block, queries_QD, gallery, shape, finish_block, equal_rows)


def _require_finite(sim_BN: Embeddings, queries_BD: Embeddings, first_row: int) -> None:
    # A non-finite query makes its row of the block non-finite, a gallery row its column.
    invalid_N = ~np.isfinite(sim_BN[0])
    if invalid_N.any() or not np.isfinite(sim_BN[:, 0]).all():
        in_queries = not np.isfinite(queries_BD).all()
        raise DataError(
            "the model returns embeddings that are not finite",
            where="queries" if in_queries else f"gallery row {first_row + invalid_N.argmax()}",
            remedy="training diverged: lower the learning rate, then train and embed again",
        )

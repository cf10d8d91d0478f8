"""Every query against every gallery row, block by block, in bounded memory.

Shapes: B queries and N gallery rows of a block, D dimensions, K ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from arcloop.errors import DataError
from arcloop.evaluation.free_memory import give_back_free_memory

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
T = TypeVar("T")
Chunks = Callable[[], Iterable[tuple[Embeddings, Labels]]]

_QUERIES, _COLUMNS = 128, 8192  # with their keys, about what a processor's cache holds
_BYTES_PER_CELL = 24  # a similarity, and keys or bins of 8 bytes before and after selection
_MOST_AT_ONCE = 8  # fixed: a product's last bits depend on its shape, and so may not the cores
_FIRST_OFFERED, _MANY = 1024, 32
_FEW = 16  # one in so many: picking them costs less than keys for all
_LOW_32 = np.int64(2**32 - 1)


def block_shape(memory_mb: float, k: int = 0) -> tuple[int, int]:
    """Choose how many queries meet how many gallery rows at a time, whatever the machine.

    Args:
        memory_mb: Bound on what is held for all blocks that `map_blocks` works on at once, in MiB.
        k: Ranks kept for each query.

    Returns:
        (queries, columns), each at least 1.

    >>> block_shape(256), block_shape(8), block_shape(256, k=50_000)
    ((128, 8192), (5, 8192), (13, 50000))
    """
    cells = int(memory_mb * 2**20) // (_MOST_AT_ONCE * _BYTES_PER_CELL)
    # With fewer columns than ranks, the same candidates would be sorted again and again.
    columns = max(1, min(max(_COLUMNS, k), cells))
    return max(1, min(_QUERIES, cells // (columns + k))), columns


def regroup(
    batches: Iterable[tuple[Embeddings, Labels]], rows: int
) -> Iterator[tuple[Embeddings, Labels]]:
    """Cut a stream of (embeddings, labels) anew: `rows` at a time, the last may be fewer."""
    held: list[tuple[Embeddings, Labels]] = []
    count = 0
    for embeddings, labels in batches:
        while len(labels) >= rows - count:
            take = rows - count
            yield _joined([*held, (embeddings[:take], labels[:take])])
            embeddings, labels = embeddings[take:], labels[take:]
            held, count = [], 0
        if len(labels):
            held.append((embeddings, labels))
            count += len(labels)
    if held:
        yield _joined(held)


def _joined(parts: list[tuple[Embeddings, Labels]]) -> tuple[Embeddings, Labels]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([e for e, _ in parts]), np.concatenate([label for _, label in parts])


def map_blocks(
    work: Callable[..., T],
    embeddings_QD: Embeddings,
    labels_Q: Labels,
    rows: int,
    *others_Q: npt.NDArray[Any],
) -> Iterator[T]:
    """Do `work` on blocks of queries, on up to 8 cores, and yield what it returns in their order.

    Each core has a block of its own, and its matrix products use that core only: threads that
    shared a product would spend most of their time waiting for each other between products.

    Args:
        work: Takes embeddings [B, D], labels [B], and the same rows of each of `others_Q`.
        embeddings_QD: Queries.
        labels_Q: Their classes.
        rows: B; the last block may be smaller.
        *others_Q: What else there is of every query.
    """
    arrays: tuple[npt.NDArray[Any], ...] = (embeddings_QD, labels_Q, *others_Q)

    def work_on(start: int) -> T:
        return work(*(array[start : start + rows] for array in arrays))

    cores = torch.get_num_threads()
    pool = _pool(os.getpid(), min(cores, _MOST_AT_ONCE))
    torch.set_num_threads(1)
    try:
        yield from pool.map(work_on, range(0, len(labels_Q), rows))
    finally:
        torch.set_num_threads(cores)
        give_back_free_memory()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return a process's threads, which stay: what MKL holds for one is lost when it ends."""
    return ThreadPoolExecutor(threads, f"blocks-of-{process}")


def similarity_blocks(
    queries_BD: Embeddings, gallery: Chunks, columns: int
) -> Iterator[tuple[int, Embeddings, Labels]]:
    """Compare queries with the whole gallery.

    Args:
        queries_BD: float32, rows of norm 1.
        gallery: Gives the gallery anew in row order, in chunks of any length.
        columns: Gallery rows compared at a time.

    Yields:
        (first gallery row, float32 cosines [B, N], int64 labels [N]); the cosines are overwritten
        by the next block.

    Raises:
        DataError: An embedding is not finite.
    """
    queries = torch.from_numpy(np.require(queries_BD, requirements=["C", "W"]))
    buffer = torch.empty(len(queries) * columns)
    row = 0
    for embeddings_ND, labels_N in regroup(gallery(), columns):
        # What is mapped read-only is copied: torch takes writable arrays only.
        part_ND = np.require(embeddings_ND, requirements=["C", "W"])
        sim_BN = buffer[: len(queries) * len(part_ND)].view(len(queries), len(part_ND))
        torch.mm(queries, torch.from_numpy(part_ND).T, out=sim_BN)
        cosines_BN = sim_BN.numpy()
        _require_finite(cosines_BN, queries_BD, row)
        yield row, cosines_BN, labels_N
        row += len(part_ND)


def _require_finite(sim_BN: Embeddings, queries_BD: Embeddings, first_row: int) -> None:
    # An embedding that is not finite spoils its whole row or column: one of each is enough to see.
    spoilt_N = ~np.isfinite(sim_BN[0])
    if spoilt_N.any() or not np.isfinite(sim_BN[:, 0]).all():
        in_queries = not np.isfinite(queries_BD).all()
        raise DataError(
            "the model gives embeddings that are not finite",
            where="queries" if in_queries else f"gallery row {first_row + spoilt_N.argmax()}",
            remedy="training diverged: lower the learning rate, then train and embed again",
        )


class Nearest:
    """The k most similar gallery rows of each query, whatever the blocks they come in.

    Of equally similar rows the lower comes first: each candidate is one integer, the similarity
    negated, in steps of 2**-30 (finer than the rounding of a float32 dot product), over the row.

    Args:
        queries: B.
        k: Rows kept for each query, at most the number of gallery rows, under 2**32.
        columns: Most gallery rows offered at a time.
    """

    def __init__(self, queries: int, k: int, columns: int) -> None:
        self._k = k
        self._keys = np.empty((queries, k + columns), np.int64)
        self._held = self._seen = 0

    def add(self, first_row: int, sim_BN: Embeddings) -> None:
        """Offer gallery rows from `first_row` on."""
        start = 0
        while start < sim_BN.shape[1]:
            # When many times k were seen, few of as many again can be better.
            many = max(_FIRST_OFFERED, _MANY * self._k)
            stop = start + (3 * self._seen if self._seen >= many else many - self._seen)
            self._offer(first_row + start, sim_BN[:, start:stop], sure=self._seen < many)
            start = stop

    def _offer(self, first_row: int, sim_BN: Embeddings, *, sure: bool) -> None:
        self._seen += sim_BN.shape[1]
        if sure or not self._offer_better(first_row, sim_BN):
            new_BN = self._keys[:, self._held : self._held + sim_BN.shape[1]]
            write_keys(first_row, sim_BN, new_BN)
            self._select(self._held + sim_BN.shape[1])

    def _offer_better(self, first_row: int, sim_BN: Embeddings) -> bool:
        """Offer only what can be among the k, of which the last is now known; False: too many."""
        last_B = (self._keys[:, self._k - 1] >> 32) + 1  # a step more: keys are cut towards zero
        limit_B = np.nextafter((last_B * -(2.0**-30)).astype(np.float32), np.float32(-2))
        places = np.flatnonzero(sim_BN >= limit_B[:, None])
        if len(places) * _FEW > sim_BN.size:
            return False
        queries, columns = np.divmod(places, sim_BN.shape[1])
        keys = np.empty((len(places), 1), np.int64)
        write_keys(0, sim_BN[queries, columns][:, None], keys)
        counts_B = np.bincount(queries, minlength=len(sim_BN))
        new_BM = self._keys[:, self._k : self._k + counts_B.max()]
        new_BM[...] = np.iinfo(np.int64).max
        within = np.arange(len(queries)) - (counts_B.cumsum() - counts_B)[queries]
        new_BM[queries, within] = keys[:, 0] | (first_row + columns)
        self._select(self._k + new_BM.shape[1])
        return True

    def _select(self, held: int) -> None:
        """Bring the k best of so many to the front, the last of them to its place."""
        if held >= self._k:
            self._keys[:, :held].partition(self._k - 1, axis=1)
        self._held = min(held, self._k)

    def rows(self) -> Labels:
        """Return the rows kept, int64 [B, k], most similar first."""
        return self._sorted() & _LOW_32

    def similarities(self) -> npt.NDArray[np.float64]:
        """Return their similarities, float64 [B, k], in steps of 2**-30."""
        return np.asarray((self._sorted() >> 32) / -(2.0**30))

    def _sorted(self) -> Labels:
        keys_BK = self._keys[:, : self._held]
        keys_BK.sort(axis=1)
        return keys_BK


def write_keys(first_row: int, sim_BN: Embeddings, keys_BN: Labels) -> None:
    """Write the keys by which rows are ranked, lowest first, see `Nearest`.

    Args:
        first_row: Row of the gallery that the block starts with.
        sim_BN: Cosines.
        keys_BN: Where to write them, int64.
    """
    np.multiply(sim_BN, np.float32(-(2**30)), out=keys_BN, casting="unsafe")
    keys_BN <<= 32
    keys_BN |= np.arange(first_row, first_row + sim_BN.shape[1])

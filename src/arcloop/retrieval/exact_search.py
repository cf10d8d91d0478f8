"""Every query against every gallery row, block by block, in bounded memory, on several cores.

Shapes: Q queries that read the gallery together, B of a block of them, N gallery rows of a block,
D dimensions, K ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import zip_longest
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from arcloop.errors import DataError
from arcloop.retrieval.free_memory import give_back_free_memory

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
S = TypeVar("S")
T = TypeVar("T")
Chunks = Callable[[], Iterable[tuple[Embeddings, Labels]]]
See = Callable[[slice, int, Embeddings, Labels], None]
"""Takes the block's place among the queries, its first gallery row, cosines [B, N], labels [N]."""

_MOST_AT_ONCE = 8  # fixed: a product's last bits depend on its shape, and so may not the cores
_QUERIES, _CELLS = 512, 2**19  # of a block; its similarities are about what a cache holds
_MOST_TOGETHER = 4096
_BYTES_PER_COSINE = 4
_BYTES_PER_CELL, _BYTES_PER_RANK = 15, 64  # with what is made of them, while and after comparing
_READ_ROWS = 8192  # of the gallery, at a time


class BlockShape(NamedTuple):
    """How the comparison is cut, whatever the machine.

    Attributes:
        together: Queries that read the gallery together, Q.
        queries: B.
        columns: N.
    """

    together: int
    queries: int
    columns: int


def block_shape(memory_mb: float, k: int = 0, batch: int = _MOST_TOGETHER) -> BlockShape:
    """Choose how many queries meet how many gallery rows at a time.

    Args:
        memory_mb: Bound on what is held beside queries and gallery, on 8 cores, in MiB.
        k: Ranks kept for each query.
        batch: Queries there are at a time.

    Returns:
        Numbers that are each at least 1.

    >>> block_shape(64), block_shape(64, batch=512).columns, block_shape(64, k=50_000).together
    (BlockShape(together=4096, queries=512, columns=1024), 8192, 20)
    """
    size = int(memory_mb * 2**20)
    together = max(1, min(batch, _MOST_TOGETHER, size // (8 * 8 * max(k, 1))))
    size = (size - 8 * together * k) // _MOST_AT_ONCE  # of a block
    most = max(1, size * 3 // 4 // (_BYTES_PER_RANK * max(k, 1)))  # the rest is for cosines
    blocks = max(_MOST_AT_ONCE, -(-together // min(_QUERIES, most)))
    queries = -(-together // blocks)
    columns = min(
        _READ_ROWS,
        _CELLS // queries,
        size // queries // _BYTES_PER_CELL,
        (size // queries - _BYTES_PER_RANK * k) // _BYTES_PER_COSINE,
    )
    return BlockShape(together, queries, max(1, columns))


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


def blocks_of(rows: int, shape: BlockShape) -> list[slice]:
    """Cut queries that read the gallery together into blocks; the last may have fewer."""
    starts = range(0, rows, shape.queries)
    return [slice(start, min(start + shape.queries, rows)) for start in starts]


def compare(see: See, queries_QD: Embeddings, gallery: Chunks, shape: BlockShape) -> None:
    """Show the cosines of queries with the whole gallery, on up to 8 cores.

    Each core has a block of its own, and its matrix products use that core only: threads that
    shared a product would spend most of their time waiting for each other between products. The
    gallery is read once, and a block sees it in row order.

    Args:
        see: Told of every block; the cosines are overwritten once it has returned.
        queries_QD: float32, rows of norm 1.
        gallery: Gives the gallery anew in row order, in chunks of any length.
        shape: How to cut; `blocks_of` the queries are the blocks.

    Raises:
        DataError: An embedding is not finite.
    """
    queries = torch.from_numpy(np.require(queries_QD, requirements=["C", "W"]))
    blocks = blocks_of(len(queries), shape)
    buffers: SimpleQueue[torch.Tensor] = SimpleQueue()
    for _ in range(min(len(blocks), _cores())):
        buffers.put(torch.empty(min(shape.queries, len(queries)) * shape.columns))

    def see_part(
        block: slice, first_row: int, part_ND: torch.Tensor, labels_N: Labels,
        before: Future[None] | None,
    ) -> None:  # fmt: skip
        if before is not None:  # taken up earlier, so this waits for what is being done
            before.result()
        buffer = buffers.get()
        try:
            for start in range(0, len(part_ND), shape.columns):
                piece = slice(start, start + shape.columns)
                columns_DN = part_ND[piece].T
                rows = block.stop - block.start
                sim_BN = buffer[: rows * columns_DN.shape[1]].view(rows, -1)
                torch.mm(queries[block], columns_DN, out=sim_BN)
                cosines_BN = sim_BN.numpy()
                _require_finite(cosines_BN, queries_QD[block], first_row + start)
                see(block, first_row + start, cosines_BN, labels_N[piece])
        finally:
            buffers.put(buffer)

    row = 0
    read = max(1, _READ_ROWS // shape.columns) * shape.columns
    before: list[Future[None]] = []
    with _one_core_each() as pool:
        try:
            for embeddings_ND, labels_N in regroup(gallery(), read):
                # What is mapped read-only is copied: torch takes writable arrays only.
                part_ND = torch.from_numpy(np.require(embeddings_ND, requirements=["C", "W"]))
                now = [
                    pool.submit(_on_one_core, see_part, block, row, part_ND, labels_N, earlier)
                    for block, earlier in zip_longest(blocks, before)
                ]
                row += len(labels_N)
                # Two parts at once: the next is read, and begun, while cores end this one.
                ending, before = before, now
                _results(ending)
        finally:
            _results(before)
    give_back_free_memory()


def in_parallel(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Do `work` on each, on up to 8 cores, each with products of its own; results in order."""
    with _one_core_each() as pool:
        return _results([pool.submit(_on_one_core, work, item) for item in items])


@contextmanager
def _one_core_each() -> Iterator[ThreadPoolExecutor]:
    """Lend the threads, each with products on one core; to be done when left."""
    cores = torch.get_num_threads()
    pool = _pool(os.getpid(), _cores())
    torch.set_num_threads(1)
    try:
        yield pool
    finally:
        torch.set_num_threads(cores)


def _on_one_core(work: Callable[..., T], *arguments: Any) -> T:
    # A thread takes over, for good, what was set in another when it first asks how many there are.
    torch.get_num_threads()
    return work(*arguments)


def _results(futures: Sequence[Future[T]]) -> list[T]:
    """Return what they return, or raise what one raises, once all have ended."""
    wait(futures)
    return [future.result() for future in futures]


def _cores() -> int:
    return min(torch.get_num_threads(), _MOST_AT_ONCE)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return a process's threads, which stay: what MKL holds for one is lost when it ends."""
    return ThreadPoolExecutor(threads, f"blocks-of-{process}")


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

"""index=auto: the index that finds enough, chosen by size and measured recall and never by a clock.

So the choice, and with it the bytes of the index, are a function of the gallery and the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from arcloop.config.value_types import Fraction, PositiveFloat, PositiveInt, check_fields
from arcloop.display.terminal import print_line, track
from arcloop.retrieval.embed import Chunks, Embeddings, Gallery, Labels
from arcloop.retrieval.exact_search import exact_neighbours
from arcloop.retrieval.index import FaissIndex, sample_rows

_FLAT = "Flat"
_HELD_OUT = 10  # at most a tenth of the rows is kept from training to be asked
_DEEPEST = 64  # candidates looked at again for each answer, at most
_WIDEST = 8  # at most 1/8 of the cells is searched: beyond, an exact search is as fast
_TIES = 32  # neighbours compared with, so that another of equal similarity counts as found


@dataclass(frozen=True)
class _Kind:
    """A kind of index: its factory string, bytes a vector, and whether it looks again."""

    factory: str
    bytes_a_vector: float
    looks_again: bool


@dataclass(frozen=True, kw_only=True)
class AutoIndex:
    """Chooses an index by the number of rows, a recall to reach and the memory that it may take.

    Few rows are searched exactly. More lie in cells as 4-bit codes that are compared in registers
    (André et al., arXiv 1812.09162), and the best are looked at again in 32, 16 or 8 bits. How many
    cells and how many of the best is measured: the nearest neighbour of gallery rows that nothing
    was trained on must be found as often as `recall` asks, with two standard errors to spare.
    HNSW is never chosen: faiss does not promise the same graph when several threads build it.

    Args:
        recall: Share of queries whose nearest row is to be found, against an exact search.
        memory_mb: Most that the index may take, in MiB; None: no limit.
        flat_rows: Rows up to which an exact search is chosen if it fits.
        train_rows: Rows of the gallery, evenly spaced, that cells and codes are trained on.
        tune_queries: Rows of the gallery, evenly spaced, kept from training to measure recall on.
    """

    recall: Fraction
    memory_mb: PositiveFloat | None
    flat_rows: PositiveInt
    train_rows: PositiveInt
    tune_queries: PositiveInt

    def __post_init__(self) -> None:
        check_fields(self, "index")

    def make(self, gallery: Gallery) -> tuple[Any, dict[str, Any]]:
        """Choose, build and tune.

        Returns:
            The faiss index, and what was chosen: "factory", "search", "why" and, where it was
            measured, "recall_at_1".

        Raises:
            ConfigError: The gallery is too small for the only kind that fits in `memory_mb`.
        """
        exact = 4.0 * gallery.embedding_dim
        if gallery.rows <= self.flat_rows and self._fits(gallery, exact):
            return self._flat(gallery, f"an exact search of {gallery.rows:,} rows is fast enough")
        kind = self._kind(gallery)
        # A row that its cell was made for is found too easily: what is asked was not trained on.
        nearest = _Nearest(gallery, min(self.tune_queries, max(1, gallery.rows // _HELD_OUT)))
        plan = FaissIndex(factory=kind.factory, search={}, train_rows=self.train_rows)
        index, facts = plan.build(gallery, held_out=nearest.rows), plan.choice(gallery)
        found = self._tune(index, nearest, kind)
        if found is None and self._fits(gallery, exact):
            return self._flat(gallery, f"no approximate search reaches a recall of {self.recall}")
        search, recall = found or self._widest(index, nearest, kind)
        facts |= {"search": search, "recall_at_1": recall, "tune_queries": len(nearest.rows)}
        limit = "" if self.memory_mb is None else f", the best that {self.memory_mb:g} MiB hold"
        facts["why"] = f"{gallery.rows:,} rows{limit}; finds {recall:.2%} of nearest rows" + (
            "" if found else f", which is not surely the {self.recall:.2%} asked for"
        )
        print_line(f"index: {facts['factory']} {search}: {facts['why']}")
        return index, facts

    def _flat(self, gallery: Gallery, why: str) -> tuple[Any, dict[str, Any]]:
        plan = FaissIndex(factory=_FLAT, search={}, train_rows=self.train_rows)
        index, facts = plan.make(gallery)
        facts |= {"recall_at_1": 1.0, "why": why}
        print_line(f"index: {_FLAT}: {why}")
        return index, facts

    def _fits(self, gallery: Gallery, bytes_a_vector: float) -> bool:
        if self.memory_mb is None:
            return True
        return gallery.rows * bytes_a_vector <= self.memory_mb * 2**20

    def _kind(self, gallery: Gallery) -> _Kind:
        """The most exact kind that fits, or else the smallest."""
        dim = gallery.embedding_dim
        parts = dim // 2 if dim % 2 == 0 else dim  # a code of 4 bits for each two numbers
        cells = f"IVF{{nlist}},PQ{parts}x4fs"
        code = parts / 2 + 8 + 4 * dim * 4 / math.sqrt(gallery.rows)  # with its row, and a share
        kinds = [
            _Kind(f"{cells},RFlat", code + 4 * dim, looks_again=True),
            _Kind(f"{cells},Refine(SQfp16)", code + 2 * dim, looks_again=True),
            _Kind(f"{cells},Refine(SQ8)", code + dim, looks_again=True),
            _Kind(cells, code, looks_again=False),
        ]
        return next((k for k in kinds if self._fits(gallery, k.bytes_a_vector)), kinds[-1])

    def _tune(
        self, index: Any, nearest: _Nearest, kind: _Kind
    ) -> tuple[dict[str, int], float] | None:
        """Fewest cells, then fewest candidates, that reach the recall; None if nothing does."""
        for cells in _cells(index):
            recall = nearest.recall(index, _search(kind, cells, _DEEPEST))
            if not nearest.surely(recall, self.recall):
                continue
            search, depth = _search(kind, cells, _DEEPEST), _DEEPEST // 2
            while kind.looks_again and depth >= 2:
                less = nearest.recall(index, _search(kind, cells, depth))
                if not nearest.surely(less, self.recall):
                    break
                search, recall, depth = _search(kind, cells, depth), less, depth // 2
            _set(index, search)
            return search, recall
        return None

    def _widest(self, index: Any, nearest: _Nearest, kind: _Kind) -> tuple[dict[str, int], float]:
        search = _search(kind, _cells(index)[-1], _DEEPEST)
        recall = nearest.recall(index, search)
        _set(index, search)
        return search, recall


class _Nearest:
    """Sampled gallery rows and, by exact search, the other rows nearest to each."""

    def __init__(self, gallery: Gallery, queries: int) -> None:
        self.rows, self._queries_QD = sample_rows(gallery, queries)
        with track("search exactly", gallery.rows, "vectors") as advance:
            sims, rows = exact_neighbours(
                self._queries_QD, _counted(gallery, advance), _TIES, own_rows_Q=self.rows
            )
        # Rows as near as the nearest are as good an answer.
        self._right = np.where(sims >= sims[:, :1] - 1e-6, rows, -1)

    def recall(self, index: Any, search: dict[str, int]) -> float:
        """Share of the queries whose nearest other row the index finds, searching like this."""
        # Of two answers one is the query itself: half the candidates for each make as many in all
        # as one answer alone will have.
        halved = {"k_factor_rf": search["k_factor_rf"] // 2} if "k_factor_rf" in search else {}
        _set(index, search | halved)
        _, found = index.search(self._queries_QD, 2)
        itself = found[:, 0] == self.rows
        answers = np.where(itself, found[:, 1], found[:, 0])
        return float(((answers[:, None] == self._right) & (answers[:, None] >= 0)).any(1).mean())

    def surely(self, recall: float, wanted: float) -> bool:
        """Whether a measured recall is above what is wanted by two standard errors."""
        error = math.sqrt(max(recall * (1 - recall), 0.0) / len(self.rows))
        return recall - 2 * error >= wanted


def _counted(gallery: Gallery, advance: Callable[[int], None]) -> Chunks:
    def chunks() -> Iterator[tuple[Embeddings, Labels]]:
        for embeddings, labels in gallery.chunks():
            yield embeddings, labels
            advance(len(labels))

    return chunks


def _cells(index: Any) -> list[int]:
    """Numbers of cells to try, fewest first, each about 1.4 times the one before."""
    most = max(1, faiss.extract_index_ivf(index).nlist // _WIDEST)
    steps = sorted({n for p in range(most.bit_length()) for n in (2**p, 3 * 2**p // 2)})
    return [n for n in steps if n <= most]


def _search(kind: _Kind, cells: int, depth: int) -> dict[str, int]:
    return {"nprobe": cells, **({"k_factor_rf": depth} if kind.looks_again else {})}


def _set(index: Any, search: dict[str, int]) -> None:
    space = faiss.ParameterSpace()
    for name, value in search.items():
        space.set_index_parameter(index, name, value)

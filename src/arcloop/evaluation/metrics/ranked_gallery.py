"""The gallery in the order of its similarity to each query, and what the order says of it.

Shapes: Q queries, B of a block of them, G gallery rows, R ranks. R of a query is the number of
gallery rows of its class, itself aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.retrieval_metrics import (
    Bools,
    Floats,
    average_precision_at_r,
    ndcg_at_k,
    r_precision,
    reciprocal_rank,
)
from arcloop.retrieval.embed import Chunks
from arcloop.retrieval.exact_search import (
    EXCLUDED,
    BlockShape,
    TopK,
    block_shape,
    map_blocks,
    own_cells,
    ranking_keys,
    scan_gallery,
)

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Cells = tuple[npt.NDArray[np.intp], Labels]
ByQuery = dict[str, npt.NDArray[Any]]
See = Callable[[slice, Embeddings, Labels, Cells], None]
"""Takes the block's place among the queries, cosines [B, N], labels [N], and the cells in which a
query meets itself."""


@dataclass(frozen=True)
class Ranked:
    """The nearest gallery rows of some queries, best first.

    Attributes:
        place: Which of the queries.
        rows: int64 [B, R].
        similarities: float64 [B, R], cosines in steps of 2**-30.
        there: bool [B, R]; False: it is the query itself, which is last where all rows are ranked.
        same: bool [B, R], whether the row is of the query's class, and not itself.
        relevant: int64 [B], R of each query.
    """

    place: slice
    rows: Labels
    similarities: Floats
    there: Bools
    same: Bools
    relevant: Labels

    def scores(self, ndcg_at: Iterable[int]) -> dict[str, Floats]:
        """Return MAP@R, R-precision, nDCG, and MRR by query; 0: none of the class is ranked."""
        return {
            "map_at_r": average_precision_at_r(self.same, self.relevant),
            "r_precision": r_precision(self.same, self.relevant),
            "mrr": reciprocal_rank(self.same),
            **{f"ndcg_at_{k}": ndcg_at_k(self.same, self.relevant, k) for k in ndcg_at},
        }


class RankedGallery:
    """Ranks the whole gallery for batch after batch of queries.

    Args:
        gallery: Gives the gallery anew, in row order.
        labels_G: Class of every row.
        num_classes: Number of classes; a label is less.
        ranks: Least number of ranks that is wanted.
        memory_mb: Bound on what is held beside queries and gallery, in MiB.
        batch: Most queries there are at a time.
    """

    def __init__(
        self,
        gallery: Chunks,
        labels_G: Labels,
        num_classes: int,
        *,
        ranks: int,
        memory_mb: int,
        batch: int,
    ) -> None:
        self._gallery = gallery
        self._labels_G = labels_G
        self._relevant_C = np.bincount(labels_G, minlength=num_classes)
        # One more than the largest class: the nearest row of another class is among them.
        self._ranks = min(max(ranks, int(self._relevant_C.max()) + 1), len(labels_G))
        self._shape = block_shape(memory_mb, self._ranks, batch)

    def relevant(self, labels_B: Labels, own_rows_B: Labels) -> Labels:
        """Return R of queries.

        Args:
            labels_B: Their classes.
            own_rows_B: The gallery row that is the query itself, and no neighbour; -1: none.
        """
        return np.asarray(self._relevant_C[labels_B] - (own_rows_B >= 0))

    def rank(
        self,
        embeddings_QD: Embeddings,
        labels_Q: Labels,
        own_rows_Q: Labels,
        look: Callable[[Ranked], ByQuery],
        see: See | None = None,
    ) -> ByQuery:
        """Rank the gallery for some queries.

        Args:
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Their classes.
            own_rows_Q: The gallery row that is the query itself, and no neighbour; -1: none.
            look: Takes what is near some of the queries and returns arrays with a row for each; an
                array "mrr" may have 0 where the rank was not found.
            see: Shown all cosines.

        Returns:
            The arrays of all queries, "mrr" with what was not found.

        Raises:
            DataError: An embedding is not finite.
        """
        parts: list[ByQuery] = []
        for start in range(0, len(labels_Q), self._shape.batch):
            these = slice(start, start + self._shape.batch)
            parts += self._rank_together(
                embeddings_QD[these], labels_Q[these], own_rows_Q[these], start, look, see
            )
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if "mrr" in found:
            relevant_Q = self.relevant(labels_Q, own_rows_Q)
            later = np.flatnonzero((found["mrr"] == 0) & (relevant_Q > 0))
            for start in range(0, len(later), self._shape.batch):
                these_ = later[start : start + self._shape.batch]
                found["mrr"][these_] = 1 / self._first_right(
                    embeddings_QD[these_], labels_Q[these_], own_rows_Q[these_]
                )
        return found

    def _rank_together(
        self,
        embeddings_QD: Embeddings,
        labels_Q: Labels,
        own_rows_Q: Labels,
        first: int,
        look: Callable[[Ranked], ByQuery],
        see: See | None,
    ) -> list[ByQuery]:
        blocks = self._shape.blocks(len(labels_Q))
        nearest = {b.start: TopK(b.stop - b.start, self._ranks) for b in blocks}

        def see_block(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
            own = own_cells(own_rows_Q[block], first_row, len(labels_N))
            if see is not None:
                see(slice(first + block.start, first + block.stop), sim_BN, labels_N, own)
            sim_BN[own] = EXCLUDED
            nearest[block.start].add(first_row, sim_BN)

        def look_at(block: slice) -> ByQuery:
            near, labels_B, own_rows_B = (
                nearest.pop(block.start), labels_Q[block], own_rows_Q[block]
            )  # fmt: skip
            similarities_BR, rows_BR = near.result()
            there_BR = rows_BR != own_rows_B[:, None]
            same_BR = (self._labels_G[rows_BR] == labels_B[:, None]) & there_BR
            relevant_B = self.relevant(labels_B, own_rows_B)
            place = slice(first + block.start, first + block.stop)
            return look(Ranked(place, rows_BR, similarities_BR, there_BR, same_BR, relevant_B))

        scan_gallery(see_block, embeddings_QD, self._gallery, self._shape)
        return map_blocks(look_at, blocks)

    def _first_right(
        self, embeddings_QD: Embeddings, labels_Q: Labels, own_rows_Q: Labels
    ) -> Labels:
        """Return the rank of the first row of each query's class, however far back it is."""
        best_Q = np.full(len(labels_Q), np.iinfo(np.int64).max)
        rank_Q = np.ones(len(labels_Q), np.int64)

        def find(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
            same = np.flatnonzero(labels_Q[block, None] == labels_N)
            queries, columns = np.divmod(same, len(labels_N))
            itself = own_rows_Q[block][queries] == first_row + columns
            queries, columns = queries[~itself], columns[~itself]
            keys = ranking_keys(sim_BN[queries, columns], first_row + columns)
            np.minimum.at(best_Q[block], queries, keys)

        def count(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
            sim_BN[own_cells(own_rows_Q[block], first_row, len(labels_N))] = EXCLUDED
            keys_BN = ranking_keys(sim_BN, np.arange(first_row, first_row + len(labels_N)))
            rank_Q[block] += (keys_BN < best_Q[block, None]).sum(axis=1)

        shape = BlockShape(len(labels_Q), self._shape.queries, self._shape.columns)
        for see in (find, count):
            scan_gallery(see, embeddings_QD, self._gallery, shape)
        return rank_Q

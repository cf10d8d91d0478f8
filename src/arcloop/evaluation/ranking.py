"""How well the embedding ranks the gallery: measured exactly, whatever the index."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.exact_search import (
    Chunks,
    Nearest,
    block_shape,
    map_blocks,
    similarity_blocks,
    write_keys,
)
from arcloop.evaluation.leave_one_out import LAST, own_cells
from arcloop.evaluation.open_set import OpenSetCounts
from arcloop.evaluation.retrieval_metrics import (
    Bools,
    Floats,
    average_precision_at_r,
    ndcg_at_k,
    overlap,
    r_precision,
    reciprocal_rank,
)
from arcloop.evaluation.verification import SimilarityHistogram

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_NDCG_AT = 10


@dataclass
class RankingCounts:
    """What was counted of some queries; parts of a split are merged in its order.

    Attributes:
        sums: Metric -> its sum over the queries of each batch. They are kept apart and added at the
            end, so that the last bits do not tell how many processes there were.
        matched: Queries with a row of their class in the gallery, over which most means are.
        seen: Queries.
        pairs: Similarities of pairs.
        open_set: Best matches.
    """

    sums: dict[str, list[float]] = field(default_factory=dict)
    matched: int = 0
    seen: int = 0
    pairs: SimilarityHistogram = field(default_factory=SimilarityHistogram)
    open_set: OpenSetCounts = field(default_factory=OpenSetCounts)

    def merge(self, other: RankingCounts) -> None:
        """Count the queries that follow too."""
        for name, sums in other.sums.items():
            self.sums.setdefault(name, []).extend(sums)
        self.matched += other.matched
        self.seen += other.seen
        self.pairs.merge(other.pairs)
        self.open_set.merge(other.open_set)

    def metrics(self) -> dict[str, float]:
        """Return what was measured; those of ranks over queries with R > 0, if there are any."""
        sums = {name: math.fsum(values) for name, values in self.sums.items()}
        index = {n: total / self.seen for n, total in sums.items() if n.startswith("index_")}
        ranks = {n: total / self.matched for n, total in sums.items() if self.matched}
        return {
            **ranks,
            **index,
            **self.open_set.metrics(),
            "num_queries_not_in_gallery": self.seen - self.matched,
        }


class Ranking:
    """Ranks the whole gallery for batch after batch of queries and keeps count.

    Args:
        gallery: Gives the gallery anew, in row order.
        gallery_labels_G: Class of every row.
        num_classes: Number of classes.
        k: Neighbours asked of the index, compared with the exact ones; at most G.
        memory_mb: Bound on what is held beside queries and gallery, in MiB.

    Attributes:
        counts: What was counted.
    """

    def __init__(
        self, gallery: Chunks, gallery_labels_G: Labels, num_classes: int, *, k: int, memory_mb: int
    ) -> None:
        self.counts = RankingCounts()
        self._gallery = gallery
        self._gallery_labels_G = gallery_labels_G
        self._relevant_C = np.bincount(gallery_labels_G, minlength=num_classes)
        self._k = k
        # One more than the largest class: the nearest row of another class is among them.
        self._ranks = min(max(k, int(self._relevant_C.max()) + 1), len(gallery_labels_G))
        self._rows, self._columns = block_shape(memory_mb, self._ranks)

    def add(
        self,
        embeddings_QD: Embeddings,
        labels_Q: Labels,
        found_QK: Labels,
        compared_Q: Bools,
        own_rows_Q: Labels,
    ) -> None:
        """Rank the gallery for the next queries.

        Args:
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Their classes.
            found_QK: Gallery rows the index found for them; -1: none.
            compared_Q: Whether the pairs of the query are counted by similarity.
            own_rows_Q: The gallery row that is the query itself, and no neighbour; -1: none.
        """
        exact, scores = [], []
        for block in map_blocks(
            self._rank, embeddings_QD, labels_Q, self._rows, compared_Q, own_rows_Q
        ):
            self.counts.pairs.merge(block.pairs)  # at once: they are larger than all the rest
            self.counts.open_set.merge(block.open_set)
            exact.append(block.rows)
            scores.append(block.scores)
        exact_QK = np.concatenate(exact)
        by_query = {
            "index_recall_at_1": overlap(found_QK[:, :1], exact_QK[:, :1]),
            "index_recall_at_10": overlap(found_QK, exact_QK),
        }
        for name in scores[0]:
            by_query[name] = np.concatenate([part[name] for part in scores])
        for name, values_Q in by_query.items():
            self.counts.sums.setdefault(name, []).append(float(values_Q.sum()))
        self.counts.matched += int((self._relevant(labels_Q, own_rows_Q) > 0).sum())
        self.counts.seen += len(labels_Q)

    def _relevant(self, labels_B: Labels, own_rows_B: Labels) -> Labels:
        """Return R: how many gallery rows are of each query's class, itself aside."""
        return np.asarray(self._relevant_C[labels_B] - (own_rows_B >= 0))

    def _rank(
        self, embeddings_BD: Embeddings, labels_B: Labels, compared_B: Bools, own_rows_B: Labels
    ) -> _Block:
        pairs, open_set = SimilarityHistogram(), OpenSetCounts()
        rows_BR, sim_BR = self._compare(embeddings_BD, labels_B, compared_B, own_rows_B, pairs)
        there_BR = rows_BR != own_rows_B[:, None]  # itself is last, where all rows are ranked
        same_BR = (self._gallery_labels_G[rows_BR] == labels_B[:, None]) & there_BR
        relevant_B = self._relevant(labels_B, own_rows_B)
        other_BR = ~same_BR & there_BR
        best_other_B = sim_BR[np.arange(len(sim_BR)), other_BR.argmax(axis=1)]
        best_other_B[~other_BR.any(axis=1)] = -np.inf
        open_set.add(sim_BR[:, 0], same_BR[:, 0], best_other_B, relevant_B > 0)
        reciprocal_B = reciprocal_rank(same_BR)
        if len(later := np.flatnonzero((reciprocal_B == 0) & (relevant_B > 0))):
            reciprocal_B[later] = 1 / self._first_right(
                embeddings_BD[later], labels_B[later], own_rows_B[later]
            )
        scores = {
            "map_at_r": average_precision_at_r(same_BR, relevant_B),
            "r_precision": r_precision(same_BR, relevant_B),
            "mrr": reciprocal_B,
            "ndcg_at_10": ndcg_at_k(same_BR, relevant_B, _NDCG_AT),
        }
        nearest = slice(None), slice(self._k)  # a part of all the ranks would keep them all alive
        exact_BK = np.where(there_BR[nearest], rows_BR[nearest], -1)
        return _Block(exact_BK, scores, pairs, open_set)

    def _compare(
        self,
        embeddings_BD: Embeddings,
        labels_B: Labels,
        compared_B: Bools,
        own_rows_B: Labels,
        pairs: SimilarityHistogram,
    ) -> tuple[Labels, Floats]:
        """Return the nearest rows [B, ranks] and their similarities; count the pairs."""
        nearest = Nearest(len(labels_B), self._ranks, self._columns)
        counted = np.flatnonzero(compared_B)
        blocks = similarity_blocks(embeddings_BD, self._gallery, self._columns)
        for first_row, sim_BN, labels_N in blocks:
            own = own_cells(own_rows_B, first_row, sim_BN.shape[1])
            pairs.add(sim_BN, labels_B, labels_N, counted)
            pairs.remove(sim_BN[own][compared_B[own[0]]])
            sim_BN[own] = LAST
            nearest.add(first_row, sim_BN)
        return nearest.rows(), nearest.similarities()

    def _first_right(
        self, embeddings_BD: Embeddings, labels_B: Labels, own_rows_B: Labels
    ) -> Labels:
        """Return the rank of the first row of each query's class, however far back it is."""
        keys_BN = np.empty((len(labels_B), self._columns), np.int64)
        best_B = np.full(len(labels_B), np.iinfo(np.int64).max)
        rank_B = np.ones(len(labels_B), np.int64)
        for find in (True, False):
            blocks = similarity_blocks(embeddings_BD, self._gallery, self._columns)
            for first_row, sim_BN, labels_N in blocks:
                sim_BN[own_cells(own_rows_B, first_row, sim_BN.shape[1])] = LAST
                keys_Bn = keys_BN[:, : sim_BN.shape[1]]
                write_keys(first_row, sim_BN, keys_Bn)
                if find:
                    keys_Bn[labels_B[:, None] != labels_N] = np.iinfo(np.int64).max
                    np.minimum(best_B, keys_Bn.min(axis=1), out=best_B)
                else:
                    rank_B += (keys_Bn < best_B[:, None]).sum(axis=1)
        return rank_B


class _Block(NamedTuple):
    rows: Labels
    scores: dict[str, Floats]
    pairs: SimilarityHistogram
    open_set: OpenSetCounts

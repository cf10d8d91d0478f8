"""Exact ranking of the whole gallery for each query, and the metrics that need it.

Shapes: Q queries, B queries of a block, G gallery rows, N gallery rows of a block, R ranks. R of a
query is the number of gallery rows of its class, without the query itself. `own_rows` contains the
row of each query in the gallery, which is not a neighbour; -1: the query is not in the gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.retrieval import (
    Bools,
    Floats,
    MetricSums,
    average_precision_at_r,
    ndcg_at_k,
    neighbour_overlap,
    r_precision,
    reciprocal_rank,
)
from arcloop.evaluation.metrics.verification import OpenSetCounts, SimilarityHistogram
from arcloop.retrieval.embed import Chunks, Embeddings, Labels
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

Cells = tuple[npt.NDArray[np.intp], Labels]
PerQuery = dict[str, npt.NDArray[Any]]
Visitor = Callable[[slice, Embeddings, Labels, Cells], None]
"""Takes the slice of queries, cosines [B, N], labels [N] and the cells of queries' own rows."""

_NDCG_AT = (10,)


@dataclass(frozen=True)
class RankedBlock:
    """The nearest gallery rows of a block of queries, best first.

    Attributes:
        queries: Slice of the queries.
        rows: int64 [B, R].
        similarities: float64 [B, R], cosines in steps of 2**-30.
        valid: bool [B, R]; False: the row is the query itself. It ranks last.
        same: bool [B, R], whether the row has the query's class and is not the query itself.
        relevant: int64 [B], R of each query.
    """

    queries: slice
    rows: Labels
    similarities: Floats
    valid: Bools
    same: Bools
    relevant: Labels

    def scores(self, ndcg_at: Iterable[int]) -> dict[str, Floats]:
        """Return MAP@R, R-precision, MRR and nDCG@k of each query; 0: no ranked row is relevant."""
        return {
            "map_at_r": average_precision_at_r(self.same, self.relevant),
            "r_precision": r_precision(self.same, self.relevant),
            "mrr": reciprocal_rank(self.same),
            **{f"ndcg_at_{k}": ndcg_at_k(self.same, self.relevant, k) for k in ndcg_at},
        }


class GalleryRanker:
    """Ranks the gallery exactly for batches of queries.

    Args:
        gallery: Returns an iterator over the gallery in row order.
        labels_G: Class of every gallery row.
        num_classes: Number of classes; labels are in [0, num_classes).
        num_ranks: Minimum number of ranks to compute.
        memory_mb: Memory limit in MiB, without queries and gallery.
        batch_size: Maximum number of queries in a batch.
    """

    def __init__(
        self, gallery: Chunks, labels_G: Labels, num_classes: int, *, num_ranks: int,
        memory_mb: int, batch_size: int,
    ) -> None:  # fmt: skip
        self._gallery = gallery
        self._labels_G = labels_G
        self._relevant_C = np.bincount(labels_G, minlength=num_classes)
        # The size of the largest class plus 1, to include the nearest row of another class.
        self._num_ranks = min(max(num_ranks, int(self._relevant_C.max()) + 1), len(labels_G))
        self._shape = block_shape(memory_mb, self._num_ranks, batch_size)

    def relevant(self, labels_Q: Labels, own_rows_Q: Labels) -> Labels:
        """Return R of each query."""
        return np.asarray(self._relevant_C[labels_Q] - (own_rows_Q >= 0))

    def rank(
        self,
        embeddings_QD: Embeddings,
        labels_Q: Labels,
        own_rows_Q: Labels,
        score: Callable[[RankedBlock], PerQuery],
        visit: Visitor | None = None,
    ) -> PerQuery:
        """Rank the gallery for a batch of queries.

        Args:
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Class of each query.
            own_rows_Q: Row of each query in the gallery; -1: none.
            score: Returns named arrays with one value per query of a block. In an array "mrr", 0
                means that no ranked row is relevant.
            visit: Called with all similarities.

        Returns:
            The arrays of `score` for all queries; "mrr" also covers rows beyond the ranks computed.

        Raises:
            DataError: An embedding is not finite.
        """
        parts: list[PerQuery] = []
        for start in range(0, len(labels_Q), self._shape.batch):
            batch = slice(start, start + self._shape.batch)
            parts += self._rank_batch(
                embeddings_QD[batch], labels_Q[batch], own_rows_Q[batch], start, score, visit
            )
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if "mrr" in values:
            relevant_Q = self.relevant(labels_Q, own_rows_Q)
            missing = np.flatnonzero((values["mrr"] == 0) & (relevant_Q > 0))
            for start in range(0, len(missing), self._shape.batch):
                queries = missing[start : start + self._shape.batch]
                values["mrr"][queries] = 1 / self._rank_of_first_relevant(
                    embeddings_QD[queries], labels_Q[queries], own_rows_Q[queries]
                )
        return values

    def _rank_batch(
        self, embeddings_QD: Embeddings, labels_Q: Labels, own_rows_Q: Labels, first: int,
        score: Callable[[RankedBlock], PerQuery], visit: Visitor | None,
    ) -> list[PerQuery]:  # fmt: skip
        blocks = self._shape.blocks(len(labels_Q))
        top = {b.start: TopK(b.stop - b.start, self._num_ranks) for b in blocks}

        def visit_block(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
            own = own_cells(own_rows_Q[block], first_row, len(labels_N))
            if visit is not None:
                visit(slice(first + block.start, first + block.stop), sim_BN, labels_N, own)
            sim_BN[own] = EXCLUDED
            top[block.start].add(first_row, sim_BN)

        def score_block(block: slice) -> PerQuery:
            similarities_BR, rows_BR = top.pop(block.start).result()
            labels_B, own_rows_B = labels_Q[block], own_rows_Q[block]
            valid_BR = rows_BR != own_rows_B[:, None]
            return score(
                RankedBlock(
                    queries=slice(first + block.start, first + block.stop),
                    rows=rows_BR,
                    similarities=similarities_BR,
                    valid=valid_BR,
                    same=(self._labels_G[rows_BR] == labels_B[:, None]) & valid_BR,
                    relevant=self.relevant(labels_B, own_rows_B),
                )
            )

        scan_gallery(visit_block, embeddings_QD, self._gallery, self._shape)
        return map_blocks(score_block, blocks)

    def _rank_of_first_relevant(
        self, embeddings_QD: Embeddings, labels_Q: Labels, own_rows_Q: Labels
    ) -> Labels:
        """Return the rank of the first row of each query's class in the whole gallery."""
        best_Q = np.full(len(labels_Q), np.iinfo(np.int64).max)
        rank_Q = np.ones(len(labels_Q), np.int64)

        def find_best(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
            same_BN = labels_Q[block, None] == labels_N
            same_BN[own_cells(own_rows_Q[block], first_row, len(labels_N))] = False
            queries, columns = np.nonzero(same_BN)
            keys = ranking_keys(sim_BN[queries, columns], first_row + columns)
            np.minimum.at(best_Q[block], queries, keys)

        def count_better(
            block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels
        ) -> None:
            sim_BN[own_cells(own_rows_Q[block], first_row, len(labels_N))] = EXCLUDED
            keys_BN = ranking_keys(sim_BN, np.arange(first_row, first_row + len(labels_N)))
            rank_Q[block] += (keys_BN < best_Q[block, None]).sum(axis=1)

        shape = BlockShape(len(labels_Q), self._shape.queries, self._shape.columns)
        for visit in (find_best, count_better):
            scan_gallery(visit, embeddings_QD, self._gallery, shape)
        return rank_Q


@dataclass
class RankingMetrics:
    """State of the metrics of the exact ranking; the states of several processes can be merged.

    Attributes:
        ranks: Sums over the queries with a row of their class in the gallery.
        index: Sums of index recall over all queries.
        num_matched: Queries with a row of their class in the gallery.
        num_queries: All queries.
        pairs: Similarities of query-gallery pairs.
        open_set: Best matches of each query.
    """

    ranks: MetricSums = field(default_factory=MetricSums)
    index: MetricSums = field(default_factory=MetricSums)
    num_matched: int = 0
    num_queries: int = 0
    pairs: SimilarityHistogram = field(default_factory=SimilarityHistogram)
    open_set: OpenSetCounts = field(default_factory=OpenSetCounts)

    def update(
        self, ranker: GalleryRanker, embeddings_QD: Embeddings, labels_Q: Labels,
        found_QK: Labels, compared_Q: Bools, own_rows_Q: Labels,
    ) -> None:  # fmt: skip
        """Rank the gallery for a batch of queries and add the results.

        Args:
            ranker: Ranks the gallery, to at least K ranks.
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Class of each query.
            found_QK: Gallery rows that the index found; -1: none.
            compared_Q: Whether the pairs of the query are added to `pairs`.
            own_rows_Q: Row of each query in the gallery; -1: none.
        """
        pairs: dict[int, SimilarityHistogram] = {}

        def count_pairs(queries: slice, sim_BN: Embeddings, labels_N: Labels, own: Cells) -> None:
            compared_B = compared_Q[queries]
            if compared_B.any():
                histogram = pairs.setdefault(queries.start, SimilarityHistogram())
                histogram.update(sim_BN, labels_Q[queries], labels_N, np.flatnonzero(compared_B))
                histogram.remove(sim_BN[own][compared_B[own[0]]])

        def score(block: RankedBlock) -> PerQuery:
            return _score_block(block, found_QK.shape[1])

        values = ranker.rank(embeddings_QD, labels_Q, own_rows_Q, score, count_pairs)
        for histogram in pairs.values():
            self.pairs.merge(histogram)
        known_Q = ranker.relevant(labels_Q, own_rows_Q) > 0
        self.open_set.update(
            values.pop("best"), values.pop("best_is_right"), values.pop("best_other"), known_Q
        )
        exact_QK = values.pop("rows")
        self.ranks.update(values)
        self.index.update(
            {
                "index_recall_at_1": neighbour_overlap(found_QK[:, :1], exact_QK[:, :1]),
                "index_recall_at_10": neighbour_overlap(found_QK, exact_QK),
            }
        )
        self.num_matched += int(known_Q.sum())
        self.num_queries += len(labels_Q)

    def merge(self, other: RankingMetrics) -> None:
        """Add the queries of another process."""
        self.ranks.merge(other.ranks)
        self.index.merge(other.index)
        self.num_matched += other.num_matched
        self.num_queries += other.num_queries
        self.pairs.merge(other.pairs)
        self.open_set.merge(other.open_set)

    def compute(self) -> dict[str, float]:
        """Return the metrics; rank metrics are means over queries with R > 0, if there are any."""
        return {
            **self.index.means(self.num_queries),
            **self.ranks.means(self.num_matched),
            **self.open_set.compute(),
            "num_queries_not_in_gallery": self.num_queries - self.num_matched,
        }


def _score_block(block: RankedBlock, k: int) -> PerQuery:
    other_BR = ~block.same & block.valid
    first_other_B = other_BR.argmax(axis=1)
    best_other_B = block.similarities[np.arange(len(first_other_B)), first_other_B]
    best_other_B[~other_BR.any(axis=1)] = -np.inf
    nearest = slice(None), slice(k)
    return {
        **block.scores(_NDCG_AT),
        "rows": np.where(block.valid[nearest], block.rows[nearest], -1),
        "best": block.similarities[:, 0].copy(),  # a view would keep all ranks in memory
        "best_is_right": block.same[:, 0].copy(),
        "best_other": best_other_B,
    }

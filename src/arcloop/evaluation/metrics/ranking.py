"""How well the embedding ranks the gallery: measured exactly, whatever the index."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.open_set import OpenSetCounts
from arcloop.evaluation.metrics.query_sums import QuerySums
from arcloop.evaluation.metrics.ranked_gallery import ByQuery, Cells, Ranked, RankedGallery
from arcloop.evaluation.metrics.retrieval_metrics import Bools, overlap
from arcloop.evaluation.metrics.verification import SimilarityHistogram
from arcloop.retrieval.embed import Chunks

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_NDCG_AT = (10,)


@dataclass
class RankingCounts:
    """What was counted of some queries; parts of a split are merged in its order.

    Attributes:
        ranks: Metrics over the queries with a row of their class in the gallery.
        index: What the index found, over all queries.
        matched: Queries with a row of their class in the gallery.
        seen: Queries.
        pairs: Similarities of pairs.
        open_set: Best matches.
    """

    ranks: QuerySums = field(default_factory=QuerySums)
    index: QuerySums = field(default_factory=QuerySums)
    matched: int = 0
    seen: int = 0
    pairs: SimilarityHistogram = field(default_factory=SimilarityHistogram)
    open_set: OpenSetCounts = field(default_factory=OpenSetCounts)

    def merge(self, other: RankingCounts) -> None:
        """Count the queries that follow too."""
        self.ranks.merge(other.ranks)
        self.index.merge(other.index)
        self.matched += other.matched
        self.seen += other.seen
        self.pairs.merge(other.pairs)
        self.open_set.merge(other.open_set)

    def metrics(self) -> dict[str, float]:
        """Return what was measured; those of ranks over queries with R > 0, if there are any."""
        return {
            **self.index.means(self.seen),
            **self.ranks.means(self.matched),
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
        batch: Most queries in a batch.

    Attributes:
        counts: What was counted.
    """

    def __init__(
        self,
        gallery: Chunks,
        gallery_labels_G: Labels,
        num_classes: int,
        *,
        k: int,
        memory_mb: int,
        batch: int,
    ) -> None:
        self.counts = RankingCounts()
        self._gallery = RankedGallery(
            gallery, gallery_labels_G, num_classes, ranks=k, memory_mb=memory_mb, batch=batch
        )
        self._k = k

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
        pairs: dict[int, SimilarityHistogram] = {}

        def count_pairs(place: slice, sim_BN: Embeddings, labels_N: Labels, own: Cells) -> None:
            compared_B = compared_Q[place]
            if compared_B.any():
                counts = pairs.setdefault(place.start, SimilarityHistogram())
                counts.add(sim_BN, labels_Q[place], labels_N, np.flatnonzero(compared_B))
                counts.remove(sim_BN[own][compared_B[own[0]]])

        found = self._gallery.rank(embeddings_QD, labels_Q, own_rows_Q, self._look, count_pairs)
        for counted in pairs.values():
            self.counts.pairs.merge(counted)
        known_Q = self._gallery.relevant(labels_Q, own_rows_Q) > 0
        self.counts.open_set.add(
            found.pop("best"), found.pop("right"), found.pop("best_other"), known_Q
        )
        exact_QK = found.pop("exact")
        self.counts.ranks.add(found)
        self.counts.index.add(
            {
                "index_recall_at_1": overlap(found_QK[:, :1], exact_QK[:, :1]),
                "index_recall_at_10": overlap(found_QK, exact_QK),
            }
        )
        self.counts.matched += int(known_Q.sum())
        self.counts.seen += len(labels_Q)

    def _look(self, ranked: Ranked) -> ByQuery:
        other_BR = ~ranked.same & ranked.there
        first_other_B = other_BR.argmax(axis=1)
        best_other_B = ranked.similarities[np.arange(len(first_other_B)), first_other_B]
        best_other_B[~other_BR.any(axis=1)] = -np.inf
        nearest = slice(None), slice(self._k)  # a part of all the ranks would keep them all alive
        return {
            **ranked.scores(_NDCG_AT),
            "exact": np.where(ranked.there[nearest], ranked.rows[nearest], -1),
            "best": ranked.similarities[:, 0].copy(),
            "right": ranked.same[:, 0].copy(),
            "best_other": best_other_B,
        }

"""Exact ranking of the whole gallery for each query, and the metrics that need it.

Shapes: Q queries, B queries of a block, G gallery rows, N gallery rows of a block, R ranks. R of a
query is the number of gallery rows of its class that are compared with it: without the query itself
and, where groups are given, without the rows of its group.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from arcloop.evaluation.metrics.retrieval import (
    Floats,
    PerQuery,
    average_precision,
    average_precision_at_r,
    concatenate,
    inverse_negative_penalty,
    ndcg_at_k,
    r_precision,
    ranks_of_hits,
    reciprocal_rank,
)
from arcloop.retrieval.duplicates import find_equal_rows
from arcloop.retrieval.embed import Chunks, Embeddings, Labels
from arcloop.retrieval.exact_search import (
    EXCLUDED,
    Visitor,
    block_shape,
    ranking_keys,
    scan_gallery,
    top_k,
)
from arcloop.retrieval.exclusion import Excluded

_FACTS = ("relevant", "neighbours", "best", "best_is_right", "best_other", "best_same")
_NO_KEY = np.iinfo(np.int64).max


class GalleryRanker:
    """Ranks the gallery exactly for batches of queries.

    Args:
        gallery: Returns an iterator over the gallery in row order.
        labels_G: Class of every gallery row.
        num_classes: Number of classes; labels are in [0, num_classes).
        num_neighbours: Number of nearest rows to return, K.
        ndcg_at: The k of nDCG@k, at most K.
        memory_mb: Memory limit in MiB, without queries and gallery.
        batch_size: Maximum number of queries in a batch.
        full_ranking: Also compute mAP and mINP, which need the rank of every relevant row.

    Attributes:
        equal_rows: The gallery rows with equal embeddings.
    """

    def __init__(
        self, gallery: Chunks, labels_G: Labels, num_classes: int, *, num_neighbours: int,
        ndcg_at: Iterable[int], memory_mb: int, batch_size: int, full_ranking: bool = False,
    ) -> None:  # fmt: skip
        self._gallery = gallery
        self._labels_G = labels_G
        self._relevant_C = np.bincount(labels_G, minlength=num_classes)
        self._num_neighbours = num_neighbours
        self._ndcg_at = tuple(ndcg_at)
        self._full_ranking = full_ranking
        # The size of the largest class plus 1, to include the nearest row of another class.
        self._num_ranks = min(max(num_neighbours, int(self._relevant_C.max()) + 1), len(labels_G))
        self._shape = block_shape(memory_mb, self._num_ranks, batch_size)
        self.equal_rows = find_equal_rows(gallery)

    def rank(
        self,
        embeddings_QD: Embeddings,
        labels_Q: Labels,
        excluded: Excluded,
        visit: Visitor | None = None,
    ) -> tuple[PerQuery, PerQuery]:
        """Rank the gallery for a batch of queries.

        Args:
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Class of each query.
            excluded: Gallery rows that are no neighbours of a query.
            visit: Called with every block of similarities.

        Returns:
            Two dicts. The first has the metrics of each query, 0 where R = 0: "map_at_r",
            "r_precision", "mrr", "ndcg_at_<k>" and, with `full_ranking`, "map" and "minp". The
            second has other values of each query: "relevant", R; "neighbours", the K nearest
            gallery rows, -1: none; "best", the similarity of the nearest row; "best_is_right",
            whether that row has the query's class; "best_other" and "best_same", the similarities
            of the nearest row of another class and of the query's class, -inf: none.

        Raises:
            DataError: An embedding is not finite.
        """
        relevant_Q = self._relevant_C[labels_Q] - excluded.count_of_class(labels_Q, self._labels_G)

        def score(block: slice, sim_BR: Floats, rows_BR: Labels) -> PerQuery:
            found_BR = rows_BR >= 0
            same_BR = (self._labels_G[rows_BR] == labels_Q[block, None]) & found_BR
            other_BR = found_BR & ~same_BR
            relevant_B = relevant_Q[block]
            ranks_BR = ranks_of_hits(same_BR) if self._full_ranking else None
            return {
                "map_at_r": average_precision_at_r(same_BR, relevant_B),
                "r_precision": r_precision(same_BR, relevant_B),
                "mrr": reciprocal_rank(same_BR),
                **{f"ndcg_at_{k}": ndcg_at_k(same_BR, relevant_B, k) for k in self._ndcg_at},
                **({} if ranks_BR is None else _full_metrics(ranks_BR)),
                "missing": relevant_B - same_BR.sum(axis=1),
                "relevant": relevant_B,
                "neighbours": rows_BR[:, : self._num_neighbours].copy(),  # frees the other ranks
                "best": sim_BR[:, 0].copy(),
                "best_is_right": same_BR[:, 0].copy(),
                "best_other": sim_BR.max(axis=1, initial=-np.inf, where=other_BR),
                "best_same": sim_BR.max(axis=1, initial=-np.inf, where=same_BR),
            }

        parts = top_k(
            score, embeddings_QD, excluded, self._gallery, self._num_ranks, self._shape, visit,
            self.equal_rows.rows,
        )  # fmt: skip
        scores = concatenate(parts)
        facts = {name: scores.pop(name) for name in _FACTS}
        missing_Q = scores.pop("missing") > 0
        if not self._full_ranking:
            missing_Q &= scores["mrr"] == 0
        missing = np.flatnonzero(missing_Q)
        for start in range(0, len(missing), self._shape.batch):
            queries = missing[start : start + self._shape.batch]
            ranks_QR, facts["best_same"][queries] = self._ranks_of_relevant(
                embeddings_QD[queries], labels_Q[queries], excluded.take(queries)
            )
            scores["mrr"][queries] = 1 / ranks_QR[:, 0]
            if self._full_ranking:
                for name, values_Q in _full_metrics(ranks_QR).items():
                    scores[name][queries] = values_Q
        return scores, facts

    def _ranks_of_relevant(
        self, embeddings_QD: Embeddings, labels_Q: Labels, excluded: Excluded
    ) -> tuple[Labels, Embeddings]:
        """Return the ranks of the rows of each query's class, [Q, R], and the cosine of the first.

        The gallery is scanned twice: for the keys of these rows, and to count the better rows.
        Without `full_ranking`, only the first rank is returned. R must be at least 1.
        """
        keys_QR = np.full((len(labels_Q), int(self._relevant_C.max())), _NO_KEY)
        found_Q = np.zeros(len(labels_Q), np.int64)
        best_Q = np.full(len(labels_Q), -np.inf, np.float32)

        def collect(block: slice, first_row: int, sim_BN: Embeddings, _: Labels) -> None:
            labels_N = self._labels_G[first_row : first_row + sim_BN.shape[1]]
            same_BN = labels_Q[block, None] == labels_N
            same_BN[excluded.cells(block, first_row, len(labels_N))] = False
            query, column = np.nonzero(same_BN)
            slot = found_Q[block][query] + np.arange(len(query)) - np.searchsorted(query, query)
            keys_QR[block][query, slot] = ranking_keys(sim_BN[query, column], first_row + column)
            found_Q[block] += same_BN.sum(axis=1)
            np.maximum.at(best_Q[block], query, sim_BN[query, column])

        def count_better(
            block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels
        ) -> None:
            sim_BN[excluded.cells(block, first_row, len(labels_N))] = EXCLUDED
            keys_BN = ranking_keys(sim_BN, np.arange(first_row, first_row + len(labels_N)))
            better_BN = keys_BN < worst_Q[block, None]
            for query in np.flatnonzero(better_BN.any(axis=1)):
                keys_R = keys_QR[block][query]
                first = np.searchsorted(keys_R, keys_BN[query, better_BN[query]], side="right")
                ahead_QR[block][query] += np.bincount(first, minlength=len(keys_R))

        self._scan(collect, embeddings_QD)
        keys_QR.sort(axis=1)
        if not self._full_ranking:
            keys_QR, found_Q = keys_QR[:, :1], np.ones_like(found_Q)
        worst_Q = np.take_along_axis(keys_QR, found_Q[:, None] - 1, axis=1)[:, 0]
        ahead_QR = np.zeros_like(keys_QR)
        self._scan(count_better, embeddings_QD)
        return np.where(keys_QR < _NO_KEY, 1 + ahead_QR.cumsum(axis=1), 0), best_Q

    def _scan(self, visit: Visitor, embeddings_QD: Embeddings) -> None:
        scan_gallery(
            visit, embeddings_QD, self._gallery, self._shape, equal_rows=self.equal_rows.rows
        )


def _full_metrics(ranks_QR: Labels) -> PerQuery:
    return {"map": average_precision(ranks_QR), "minp": inverse_negative_penalty(ranks_QR)}

"""Optional answer modes of an evaluation, the metrics they give, and their cost.

Shapes: Q queries, B queries of a batch, K neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from arcloop.config.evaluation import EvaluateSettings
from arcloop.evaluation.metrics.answers import Prototypes, vote
from arcloop.evaluation.metrics.ranking import GalleryRanker
from arcloop.evaluation.metrics.reranking import expand_queries, rerank
from arcloop.evaluation.metrics.retrieval import PerQuery, average_precision_at_r
from arcloop.retrieval.embed import Chunks, Embeddings, Labels
from arcloop.retrieval.exclusion import Excluded


class AnswerOptions:
    """Computes the metrics of the optional answer modes that the settings select.

    Args:
        gallery: Returns an iterator over the gallery in row order.
        labels_G: Class of every gallery row.
        settings: Settings of the evaluation.

    Attributes:
        num_neighbours: Exact neighbours that the modes need.
        seconds: Mode -> time of all queries, without the search that every evaluation makes.
    """

    def __init__(self, gallery: Chunks, labels_G: Labels, settings: EvaluateSettings) -> None:
        self._gallery, self._labels_G, self._settings = gallery, labels_G, settings
        depth = settings.rerank_depth if settings.rerank else 0
        self.num_neighbours = max(depth, settings.expansion_k if settings.query_expansion else 0)
        self.seconds: dict[str, float] = {}
        if settings.prototypes:
            with self._timed("class prototypes"):
                self._prototypes = Prototypes(gallery, labels_G)

    def measure(
        self,
        ranker: GalleryRanker,
        queries_BD: Embeddings,
        labels_B: Labels,
        excluded: Excluded,
        answers_BK: Labels,
        rows_BK: Labels,
        plain: PerQuery,
    ) -> PerQuery:
        """Return the metrics of a batch of queries.

        Args:
            ranker: Ranks the gallery for expanded queries.
            queries_BD: float32, rows of norm 1.
            labels_B: Class of each query.
            excluded: Gallery rows that are no neighbours of a query.
            answers_BK: Classes of the neighbours that the index found, nearest first; -1: none.
            rows_BK: The `num_neighbours` exact nearest gallery rows; -1: none.
            plain: Values of `GalleryRanker.rank`: "map_at_r" and "relevant".
        """
        settings, found = self._settings, PerQuery()
        if settings.vote_k:
            with self._timed("vote"):
                found["top1_vote_k"] = vote(answers_BK[:, : settings.vote_k]) == labels_B
        if settings.prototypes:
            with self._timed("class prototypes"):
                predicted_B = self._prototypes.predict(queries_BD, labels_B, excluded.own_rows >= 0)
            found["top1_prototype"] = predicted_B == labels_B
        if settings.query_expansion:
            average = settings.query_expansion.lower() == "average"
            alpha = 0.0 if average else settings.expansion_alpha
            with self._timed("query expansion"):
                rows_BX = rows_BK[:, : settings.expansion_k]
                expanded_BD = expand_queries(
                    queries_BD, rows_BX, self._gallery, alpha, settings.memory_mb
                )
                scores, facts = ranker.rank(expanded_BD, labels_B, excluded)
            found["recall_at_1_expanded"] = facts["best_is_right"]
            found["map_at_r_expanded"] = scores["map_at_r"]
        if settings.rerank:
            rows_BK = rows_BK[:, : settings.rerank_depth]
            with self._timed("re-ranking"):
                reranked_BK = rerank(
                    queries_BD, rows_BK, self._gallery, k1=settings.rerank_k1,
                    k2=settings.rerank_k2, original_weight=settings.rerank_original_weight,
                    memory_mb=settings.memory_mb,
                )  # fmt: skip
            before_BK, after_BK = (self._same(rows, labels_B) for rows in (rows_BK, reranked_BK))
            found["recall_at_1_reranked"] = after_BK[:, 0]
            # Ranks after the re-ranked ones have the same precision before and after.
            found["map_at_r_reranked"] = plain["map_at_r"] + (
                average_precision_at_r(after_BK, plain["relevant"])
                - average_precision_at_r(before_BK, plain["relevant"])
            )
        return found

    def _same(self, rows_BK: Labels, labels_B: Labels) -> npt.NDArray[np.bool_]:
        return np.asarray((rows_BK >= 0) & (self._labels_G[rows_BK] == labels_B[:, None]))

    @contextmanager
    def _timed(self, mode: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[mode] = self.seconds.get(mode, 0) + time.perf_counter() - start

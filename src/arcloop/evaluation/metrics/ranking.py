"""Exact ranking of the whole gallery for each query, and the metrics that need it.

Shapes: Q queries, B queries of a block, G gallery rows, N gallery rows of a block, R ranks. R of a
query is the number of gallery rows of its class, without the query itself. `own_rows` contains the
row of each query in the gallery, which is not a neighbour; -1: the query is not in the gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError
from arcloop.evaluation.metrics.retrieval import (
    Floats,
    PerQuery,
    average_precision_at_r,
    concatenate,
    mean_metrics,
    ndcg_at_k,
    r_precision,
    recall_and_precision,
    reciprocal_rank,
)
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch
from arcloop.retrieval.exact_search import (
    EXCLUDED,
    Visitor,
    block_shape,
    own_cells,
    ranking_keys,
    scan_gallery,
    top_k,
)

Rows = tuple[npt.ArrayLike, npt.ArrayLike]
"""Embeddings [N, D] and labels [N]: arrays, or tensors on the CPU."""

_FACTS = ("relevant", "neighbours", "best", "best_is_right", "best_other")
_BATCH_ROWS = 4096
_NORM_TOLERANCE = 1e-3


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
    """

    def __init__(
        self, gallery: Chunks, labels_G: Labels, num_classes: int, *, num_neighbours: int,
        ndcg_at: Iterable[int], memory_mb: int, batch_size: int,
    ) -> None:  # fmt: skip
        self._gallery = gallery
        self._labels_G = labels_G
        self._relevant_C = np.bincount(labels_G, minlength=num_classes)
        self._num_neighbours = num_neighbours
        self._ndcg_at = tuple(ndcg_at)
        # The size of the largest class plus 1, to include the nearest row of another class.
        self._num_ranks = min(max(num_neighbours, int(self._relevant_C.max()) + 1), len(labels_G))
        self._shape = block_shape(memory_mb, self._num_ranks, batch_size)

    def rank(
        self,
        embeddings_QD: Embeddings,
        labels_Q: Labels,
        own_rows_Q: Labels,
        visit: Visitor | None = None,
    ) -> tuple[PerQuery, PerQuery]:
        """Rank the gallery for a batch of queries.

        Args:
            embeddings_QD: float32, rows of norm 1.
            labels_Q: Class of each query.
            own_rows_Q: Row of each query in the gallery; -1: none.
            visit: Called with every block of similarities.

        Returns:
            Two dicts. The first has the metrics of each query, 0 where R = 0: "map_at_r",
            "r_precision", "mrr" and "ndcg_at_<k>". The second has other values of each query:
            "relevant", R; "neighbours", the K nearest gallery rows, -1: none; "best", the
            similarity of the nearest row; "best_is_right", whether that row has the query's class;
            "best_other", the similarity of the nearest row of another class, -inf: none.

        Raises:
            DataError: An embedding is not finite.
        """
        relevant_Q = self._relevant_C[labels_Q] - (own_rows_Q >= 0)

        def score(block: slice, sim_BR: Floats, rows_BR: Labels) -> PerQuery:
            found_BR = rows_BR >= 0
            same_BR = (self._labels_G[rows_BR] == labels_Q[block, None]) & found_BR
            other_BR = found_BR & ~same_BR
            relevant_B = relevant_Q[block]
            return {
                "map_at_r": average_precision_at_r(same_BR, relevant_B),
                "r_precision": r_precision(same_BR, relevant_B),
                "mrr": reciprocal_rank(same_BR),
                **{f"ndcg_at_{k}": ndcg_at_k(same_BR, relevant_B, k) for k in self._ndcg_at},
                "relevant": relevant_B,
                "neighbours": rows_BR[:, : self._num_neighbours].copy(),  # frees the other ranks
                "best": sim_BR[:, 0].copy(),
                "best_is_right": same_BR[:, 0].copy(),
                "best_other": sim_BR.max(axis=1, initial=-np.inf, where=other_BR),
            }

        shape, num_ranks = self._shape, self._num_ranks
        parts = top_k(score, embeddings_QD, own_rows_Q, self._gallery, num_ranks, shape, visit)
        scores = concatenate(parts)
        facts = {name: scores.pop(name) for name in _FACTS}
        missing = np.flatnonzero((scores["mrr"] == 0) & (relevant_Q > 0))
        scores["mrr"][missing] = 1 / self._rank_of_first_relevant(
            embeddings_QD[missing], labels_Q[missing], own_rows_Q[missing]
        )
        return scores, facts

    def _rank_of_first_relevant(
        self, embeddings_QD: Embeddings, labels_Q: Labels, own_rows_Q: Labels
    ) -> Labels:
        """Return the rank of the first row of each query's class in the whole gallery."""
        best_Q = np.full(len(labels_Q), np.iinfo(np.int64).max)
        rank_Q = np.ones(len(labels_Q), np.int64)

        def find_best(block: slice, first_row: int, sim_BN: Embeddings, _: Labels) -> None:
            labels_N = self._labels_G[first_row : first_row + sim_BN.shape[1]]
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

        for visit in (find_best, count_better):
            scan_gallery(visit, embeddings_QD, self._gallery, self._shape)
        return rank_Q


def evaluate_retrieval(
    queries: Rows | Iterable[Rows],
    gallery: Rows | Chunks,
    *,
    leave_one_out: bool = False,
    recall_at: Sequence[int] = (1, 5, 10),
    precision_at: Sequence[int] = (5, 10),
    ndcg_at: Sequence[int] = (10,),
    memory_mb: int = 64,
) -> dict[str, float]:
    """Rank the gallery exactly by cosine for every query and compute retrieval metrics.

    Every query is compared with every gallery row, in blocks on up to 8 threads, so that neither
    side needs to fit in memory. The metrics do not depend on the number of threads. Rows
    with equal similarity rank by row number. `evaluate_embeddings` returns the same values for an
    exact index, except for the rounding of float32 products, which depends on the block sizes.

    Args:
        queries: (embeddings [Q, D], labels [Q]), or an iterable of such batches. Embeddings are
            float32 rows of norm 1, labels any int64.
        gallery: (embeddings [G, D], labels [G]), or a function that returns an iterator over such
            chunks in row order each time it is called.
        leave_one_out: Query i is row i of the gallery and is not compared with itself. The gallery
            may have additional rows.
        recall_at: The k of Recall@k, at least 1.
        precision_at: The k of Precision@k, at least 1.
        ndcg_at: The k of nDCG@k, at least 1.
        memory_mb: Memory limit in MiB, without queries and gallery.

    Returns:
        Metric -> value. `recall_at_1` is top-1 accuracy, which pytorch-metric-learning calls
        precision_at_1. Recall@k and Precision@k are means over all queries. `map_at_r`,
        `r_precision`, `mrr` and nDCG are means over the queries that have another row of their
        class in the gallery, and are missing if there are none; `num_queries_not_in_gallery`
        counts the other queries. See `arcloop.evaluation.metrics.retrieval` for the definitions.

    Raises:
        DataError: There are no queries or no gallery, an embedding is not finite or not of norm 1,
            or with `leave_one_out` the gallery has fewer rows than there are queries, or one row.
        ValueError: A k is less than 1.

    >>> rows, labels = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]], np.array([0, 0, 1, 1])
    >>> metrics = evaluate_retrieval((rows, labels), (rows, labels), leave_one_out=True)
    >>> metrics["recall_at_1"], metrics["r_precision"]
    (0.5, 0.5)
    """
    if min((1, *recall_at, *precision_at, *ndcg_at)) < 1:
        raise ValueError(f"k must be at least 1: {recall_at=}, {precision_at=}, {ndcg_at=}")
    labels = [labels_N for _, labels_N in _checked(gallery, "gallery")]
    num_gallery = sum(map(len, labels))
    if not num_gallery:
        raise DataError("the gallery is empty", remedy="give at least one row")
    classes, class_G = np.unique(np.concatenate(labels), return_inverse=True)
    ranker = GalleryRanker(
        lambda: _checked(gallery, "gallery"),
        class_G,
        len(classes) + 1,  # the last class is for queries whose label is not in the gallery
        num_neighbours=max((1, *recall_at, *precision_at, *ndcg_at)),
        ndcg_at=ndcg_at,
        memory_mb=memory_mb,
        batch_size=_BATCH_ROWS,
    )
    parts: list[PerQuery] = []
    num_queries = 0
    for embeddings_QD, labels_Q in rebatch(_checked(queries, "queries"), _BATCH_ROWS):
        rows_Q = np.arange(num_queries, num_queries + len(labels_Q))
        num_queries += len(labels_Q)
        if leave_one_out and (num_queries > num_gallery or num_gallery < 2):
            raise DataError(
                f"leave_one_out=True, but query {rows_Q[-1]} is not in a gallery of {num_gallery} "
                "rows, or the gallery has one row",
                remedy="give a gallery of at least two rows that starts with the queries",
            )
        position_Q = np.minimum(np.searchsorted(classes, labels_Q), len(classes) - 1)
        class_Q = np.where(classes[position_Q] == labels_Q, position_Q, len(classes))
        own_rows_Q = rows_Q if leave_one_out else np.full(len(rows_Q), -1)
        scores, facts = ranker.rank(embeddings_QD, class_Q, own_rows_Q)
        rows_QK = facts["neighbours"]
        classes_QK = np.where(rows_QK >= 0, class_G[rows_QK], -1)
        hits = recall_and_precision(classes_QK, class_Q, recall_at, precision_at)
        parts.append({**hits, **scores, "relevant": facts["relevant"]})
    if not num_queries:
        raise DataError("there are no queries", remedy="give at least one row")
    values = concatenate(parts)
    relevant_Q = values.pop("relevant")
    return {
        **mean_metrics(values, relevant_Q),
        "num_queries": num_queries,
        "num_queries_not_in_gallery": int((relevant_Q == 0).sum()),
        "num_gallery": num_gallery,
    }


def _batches(rows: Rows | Iterable[Rows] | Callable[[], Iterable[Rows]]) -> Iterable[Rows]:
    """Convert all accepted forms of embeddings and labels to an iterable of batches."""
    if callable(rows):
        return rows()
    # A tuple of two batches is a stream: its elements are tuples and not arrays.
    is_pair = isinstance(rows, tuple) and len(rows) == 2 and not isinstance(rows[0], tuple)
    return [rows] if is_pair else rows  # type: ignore[list-item, return-value]


def _checked(
    rows: Rows | Iterable[Rows] | Callable[[], Iterable[Rows]], where: str
) -> Iterator[tuple[Embeddings, Labels]]:
    """Yield batches as arrays.

    Raises:
        DataError: Embeddings are not [N, D] of norm 1, or labels are not N integers.
    """
    first = 0
    for embeddings, labels in _batches(rows):
        embeddings_ND, labels_N = np.asarray(embeddings, np.float32), np.asarray(labels)
        if embeddings_ND.ndim != 2 or labels_N.shape != embeddings_ND.shape[:1]:
            raise DataError(
                f"embeddings have shape {embeddings_ND.shape}, but labels {labels_N.shape}",
                where=where,
                remedy="give embeddings [N, D] and labels [N]",
            )
        if labels_N.dtype.kind not in "iu" and len(labels_N):
            raise DataError(f"labels are {labels_N.dtype}", where=where, remedy="give integers")
        norms_N = np.sqrt(np.einsum("nd,nd->n", embeddings_ND, embeddings_ND))
        if len(wrong := np.flatnonzero(~(np.abs(norms_N - 1) <= _NORM_TOLERANCE))):
            raise DataError(
                f"an embedding has norm {norms_N[wrong[0]]:.6g}",
                where=f"{where}, row {first + wrong[0]}",
                remedy="normalize each embedding to norm 1",
            )
        yield embeddings_ND, labels_N.astype(np.int64)
        first += len(labels_N)

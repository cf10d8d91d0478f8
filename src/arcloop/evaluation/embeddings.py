"""Retrieval metrics of any embeddings: `evaluate_retrieval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError
from arcloop.evaluation.metrics.ranking import GalleryRanker
from arcloop.evaluation.metrics.retrieval import (
    PerQuery,
    concatenate,
    mean_metrics,
    recall_and_precision,
)
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch
from arcloop.retrieval.exclusion import Excluded

Rows = tuple[npt.ArrayLike, npt.ArrayLike]
"""Embeddings [N, D] and labels [N]: arrays, or tensors on the CPU."""

_BATCH_ROWS = 4096
_NORM_TOLERANCE = 1e-3


def evaluate_retrieval(
    queries: Rows | Iterable[Rows],
    gallery: Rows | Chunks,
    *,
    leave_one_out: bool = False,
    recall_at: Sequence[int] = (1, 5, 10),
    precision_at: Sequence[int] = (5, 10),
    ndcg_at: Sequence[int] = (10,),
    full_ranking: bool = False,
    groups: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    memory_mb: int = 64,
) -> dict[str, float]:
    """Rank the gallery exactly by cosine for every query and compute retrieval metrics.

    Every query is compared with every gallery row, in blocks on up to 8 threads, so that neither
    side needs to fit in memory. The metrics do not depend on the number of threads. Rows
    with equal similarity rank by row number, as do rows with equal embeddings, whose float32
    products may differ in the last bit. `evaluate_embeddings` returns the same values for an exact
    index, except for the rounding of the products of other rows, which depends on the block sizes.

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
        full_ranking: Also compute `map` and `minp`, mAP and mINP over the whole ranking.
        groups: (int64 [Q], int64 [G]), the group of each query and gallery row, such as a video; a
            negative number: none. Rows of the query's group are not compared with it, of whatever
            class they are. In re-ID, a group is a pair of person and camera.
        memory_mb: Memory limit in MiB, without queries and gallery.

    Returns:
        Metric -> value. `recall_at_1` is top-1 accuracy, which pytorch-metric-learning calls
        precision_at_1. All metrics are means over the queries that are compared with a row of
        their class, as in that library, and are missing if there are none;
        `num_queries_not_in_gallery` counts the other queries. See
        `arcloop.evaluation.metrics.retrieval` for the definitions.

    Raises:
        DataError: There are no queries or no gallery, an embedding is not finite or not of norm 1,
            the groups do not fit, or with `leave_one_out` the gallery has fewer rows than there are
            queries, or one row.
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
        full_ranking=full_ranking,
    )
    query_groups, gallery_groups = map(np.asarray, groups) if groups else (None, None)
    _require_length(gallery_groups, num_gallery, "gallery")
    parts: list[PerQuery] = []
    num_queries = 0
    for embeddings_QD, labels_Q in rebatch(_checked(queries, "queries"), _BATCH_ROWS):
        rows_Q = np.arange(num_queries, num_queries + len(labels_Q))
        num_queries += len(labels_Q)
        if leave_one_out:
            _require_in_gallery(num_queries, num_gallery)
        position_Q = np.minimum(np.searchsorted(classes, labels_Q), len(classes) - 1)
        class_Q = np.where(classes[position_Q] == labels_Q, position_Q, len(classes))
        own_rows_Q = rows_Q if leave_one_out else np.full(len(rows_Q), -1)
        groups_Q = None if query_groups is None else query_groups[rows_Q[0] : num_queries]
        _require_length(groups_Q, len(rows_Q), "queries")
        excluded = Excluded(own_rows_Q, groups_Q, gallery_groups)
        scores, facts = ranker.rank(embeddings_QD, class_Q, excluded)
        rows_QK = facts["neighbours"]
        classes_QK = np.where(rows_QK >= 0, class_G[rows_QK], -1)
        hits = recall_and_precision(classes_QK, class_Q, recall_at, precision_at)
        parts.append({**hits, **scores, "relevant": facts["relevant"]})
    if not num_queries:
        raise DataError("there are no queries", remedy="give at least one row")
    _require_length(query_groups, num_queries, "queries")
    values = concatenate(parts)
    relevant_Q = values.pop("relevant")
    return {
        **mean_metrics(values, relevant_Q),
        "num_queries": num_queries,
        "num_queries_not_in_gallery": int((relevant_Q == 0).sum()),
        "num_gallery": num_gallery,
    }


def _require_in_gallery(num_queries: int, num_gallery: int) -> None:
    if num_queries > num_gallery or num_gallery < 2:
        raise DataError(
            f"leave_one_out=True, but query {num_queries - 1} is not in a gallery of {num_gallery} "
            "rows, or the gallery has one row",
            remedy="give a gallery of at least two rows that starts with the queries",
        )


def _require_length(groups: npt.NDArray[np.int64] | None, rows: int, where: str) -> None:
    if groups is not None and len(groups) != rows:
        raise DataError(
            f"{len(groups)} groups for {rows} rows",
            where=where,
            remedy="give one group for each row",
        )


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

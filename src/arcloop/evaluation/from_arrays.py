"""Retrieval metrics of embeddings given as arrays, tensors or streams of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError
from arcloop.evaluation.metrics.ranking import GalleryRanker, PerQuery, RankedBlock
from arcloop.evaluation.metrics.retrieval import MetricSums, recall_and_precision
from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch

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
    labels_G = _checked_labels(gallery)
    classes, class_G = np.unique(labels_G, return_inverse=True)
    ranker = GalleryRanker(
        lambda: _with_labels(gallery, class_G),
        class_G,
        len(classes) + 1,  # the last class is for queries whose label is not in the gallery
        num_ranks=max((1, *recall_at, *precision_at, *ndcg_at)),
        memory_mb=memory_mb,
        batch_size=_BATCH_ROWS,
    )
    hits, ranks = MetricSums(), MetricSums()
    num_queries = num_matched = 0
    for embeddings_QD, labels_Q in rebatch(_checked(queries, "queries"), _BATCH_ROWS):
        own_rows_Q = np.full(len(labels_Q), -1)
        if leave_one_out:
            own_rows_Q = np.arange(num_queries, num_queries + len(labels_Q))
            _require_own_rows(own_rows_Q, len(labels_G))
        class_Q = _class_of(labels_Q, classes)

        def score(block: RankedBlock, class_Q: Labels = class_Q) -> PerQuery:
            neighbours_BR = np.where(block.valid, class_G[block.rows], -1)
            return {
                **recall_and_precision(
                    neighbours_BR, class_Q[block.queries], recall_at, precision_at
                ),
                **block.scores(ndcg_at),
            }

        values = ranker.rank(embeddings_QD, class_Q, own_rows_Q, score)
        of_all = [name for name in values if name.startswith(("recall_at_", "precision_at_"))]
        hits.update({name: values.pop(name) for name in of_all})
        ranks.update(values)
        num_queries += len(labels_Q)
        num_matched += int((ranker.relevant(class_Q, own_rows_Q) > 0).sum())
    if not num_queries:
        raise DataError("there are no queries", remedy="give at least one row")
    return {
        **hits.means(num_queries),
        **ranks.means(num_matched),
        "num_queries": num_queries,
        "num_queries_not_in_gallery": num_queries - num_matched,
        "num_gallery": len(labels_G),
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


def _checked_labels(gallery: Rows | Chunks) -> Labels:
    labels = [labels_N for _, labels_N in _checked(gallery, "gallery")]
    if not sum(map(len, labels)):
        raise DataError("the gallery is empty", remedy="give at least one row")
    return np.concatenate(labels)


def _with_labels(gallery: Rows | Chunks, labels_G: Labels) -> Iterator[tuple[Embeddings, Labels]]:
    """Yield the embeddings of the gallery with class indices in place of the given labels."""
    row = 0
    for given, _ in _batches(gallery):
        embeddings_ND = np.asarray(given, np.float32)
        yield embeddings_ND, labels_G[row : row + len(embeddings_ND)]
        row += len(embeddings_ND)


def _class_of(labels_Q: Labels, classes: Labels) -> Labels:
    """Return the index of each label in the sorted `classes`; `len(classes)` if it is missing."""
    position_Q = np.searchsorted(classes, labels_Q)
    found_Q = classes[np.minimum(position_Q, len(classes) - 1)] == labels_Q
    return np.where(found_Q, position_Q, len(classes))


def _require_own_rows(own_rows_Q: Labels, gallery_rows: int) -> None:
    if own_rows_Q[-1] >= gallery_rows or gallery_rows < 2:
        raise DataError(
            f"leave_one_out=True, but query {own_rows_Q[-1]} is not in a gallery of "
            f"{gallery_rows} rows, or the gallery has one row",
            remedy="give a gallery of at least two rows that starts with the queries",
        )

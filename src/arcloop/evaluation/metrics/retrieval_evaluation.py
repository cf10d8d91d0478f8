"""How well embeddings retrieve their class: the metrics of a ranked gallery, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError
from arcloop.evaluation.metrics.leave_one_out import no_own_rows
from arcloop.evaluation.metrics.query_sums import QuerySums
from arcloop.evaluation.metrics.ranked_gallery import ByQuery, Ranked, RankedGallery
from arcloop.evaluation.metrics.retrieval_metrics import hits_at_k
from arcloop.retrieval.embed import Chunks, rebatch

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Rows = tuple[npt.ArrayLike, npt.ArrayLike]
"""Embeddings [N, D] and labels [N]: arrays, or tensors on the CPU."""

_BATCH_ROWS = 4096
_NORM_WITHIN = 1e-3


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
    """Rank the gallery for every query by cosine, exactly, and measure the ranking.

    Every query meets every gallery row, block by block on up to 8 cores, so that neither needs to
    fit in memory; the numbers do not depend on how many cores there are. Of equally similar rows
    the lower comes first. `judge` finds the same with an exact index, up to the last bit of a
    float32 product, which depends on how large its blocks are.

    Args:
        queries: (embeddings [Q, D], labels [Q]), or a stream of such batches. Rows are float32 of
            norm 1, labels any int64.
        gallery: The same of the gallery; or a function that gives it anew each time it is called,
            in row order, in chunks of any length. Only its labels are held.
        leave_one_out: Query i is row i of the gallery, and is not compared with itself. The gallery
            may have more rows.
        recall_at: The k of Recall@k, from 1.
        precision_at: The k of Precision@k, from 1.
        ndcg_at: The k of nDCG@k, from 1.
        memory_mb: Bound on what is held beside queries and gallery, in MiB.

    Returns:
        Metric -> number. `recall_at_1` is top-1 accuracy, which pytorch-metric-learning calls
        precision_at_1. Recall@k and Precision@k are means over all queries. `map_at_r`,
        `r_precision`, `mrr` and nDCG are means over those with a row of their class in the gallery,
        itself aside, and left out where there is none; `num_queries_not_in_gallery` are the others.
        See `arcloop.evaluation.metrics.retrieval_metrics` for the definitions.

    Raises:
        DataError: There are no queries or no gallery, or rows that are not finite or not of norm 1,
            or `leave_one_out` with fewer gallery rows than queries, or a gallery of one row.
        ValueError: A k is under 1.

    >>> rows, labels = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]], np.array([0, 0, 1, 1])
    >>> metrics = evaluate_retrieval((rows, labels), (rows, labels), leave_one_out=True)
    >>> metrics["recall_at_1"], metrics["r_precision"]
    (0.5, 0.5)
    """
    if min((1, *recall_at, *precision_at, *ndcg_at)) < 1:
        raise ValueError(f"k counts from 1: {recall_at=}, {precision_at=}, {ndcg_at=}")
    labels_G = _checked_labels(gallery)
    classes, class_G = np.unique(labels_G, return_inverse=True)
    ranked_gallery = RankedGallery(
        lambda: _with_labels(gallery, class_G),
        class_G,
        len(classes) + 1,
        ranks=max((1, *recall_at, *precision_at, *ndcg_at)),
        memory_mb=memory_mb,
        batch=_BATCH_ROWS,
    )
    hits, ranks = QuerySums(), QuerySums()
    seen = matched = 0
    for embeddings_QD, labels_Q in rebatch(_checked(queries, "queries"), _BATCH_ROWS):
        own_rows_Q = no_own_rows(len(labels_Q))
        if leave_one_out:
            own_rows_Q = np.arange(seen, seen + len(labels_Q))
            _require_own_rows(own_rows_Q, len(labels_G))
        class_Q = _class_of(labels_Q, classes)

        def look(ranked: Ranked, class_Q: Labels = class_Q) -> ByQuery:
            near_BR = np.where(ranked.there, class_G[ranked.rows], -1)
            return {
                **hits_at_k(near_BR, class_Q[ranked.place], recall_at, precision_at),
                **ranked.scores(ndcg_at),
            }

        found = ranked_gallery.rank(embeddings_QD, class_Q, own_rows_Q, look)
        of_all = [name for name in found if name.startswith(("recall_at_", "precision_at_"))]
        hits.add({name: found.pop(name) for name in of_all})
        ranks.add(found)
        seen += len(labels_Q)
        matched += int((ranked_gallery.relevant(class_Q, own_rows_Q) > 0).sum())
    if not seen:
        raise DataError("there are no queries", remedy="give at least one row")
    return {
        **hits.means(seen),
        **ranks.means(matched),
        "num_queries": seen,
        "num_queries_not_in_gallery": seen - matched,
        "num_gallery": len(labels_G),
    }


def _batches(rows: Rows | Iterable[Rows] | Callable[[], Iterable[Rows]]) -> Iterable[Rows]:
    if callable(rows):
        return rows()
    # A pair of arrays, and not two batches of a stream, each of which is a pair.
    is_pair = isinstance(rows, tuple) and len(rows) == 2 and not isinstance(rows[0], tuple)
    return [rows] if is_pair else rows  # type: ignore[list-item, return-value]


def _checked(
    rows: Rows | Iterable[Rows] | Callable[[], Iterable[Rows]], where: str
) -> Iterator[tuple[Embeddings, Labels]]:
    """Yield batches as arrays.

    Raises:
        DataError: They are not float rows of norm 1 with a whole number each.
    """
    first = 0
    for given, given_labels in _batches(rows):
        embeddings_ND, labels_N = np.asarray(given, np.float32), np.asarray(given_labels)
        if embeddings_ND.ndim != 2 or labels_N.shape != embeddings_ND.shape[:1]:
            raise DataError(
                f"embeddings {embeddings_ND.shape} and labels {labels_N.shape} do not belong "
                "together",
                where=where,
                remedy="give embeddings [N, D] and labels [N]",
            )
        if labels_N.dtype.kind not in "iu" and len(labels_N):
            raise DataError(f"labels are {labels_N.dtype}", where=where, remedy="give int64")
        norms_N = np.sqrt(np.einsum("nd,nd->n", embeddings_ND, embeddings_ND))
        if len(wrong := np.flatnonzero(~(np.abs(norms_N - 1) <= _NORM_WITHIN))):
            raise DataError(
                f"an embedding has norm {norms_N[wrong[0]]:.6g}",
                where=f"{where}, row {first + wrong[0]}",
                remedy="divide each embedding by its length",
            )
        yield embeddings_ND, labels_N.astype(np.int64)
        first += len(labels_N)


def _checked_labels(gallery: Rows | Chunks) -> Labels:
    labels = [labels_N for _, labels_N in _checked(gallery, "gallery")]
    if not sum(map(len, labels)):
        raise DataError("the gallery is empty", remedy="give at least one row")
    return np.concatenate(labels)


def _with_labels(gallery: Rows | Chunks, labels_G: Labels) -> Iterator[tuple[Embeddings, Labels]]:
    row = 0
    for given, _ in _batches(gallery):
        embeddings_ND = np.asarray(given, np.float32)
        yield embeddings_ND, labels_G[row : row + len(embeddings_ND)]
        row += len(embeddings_ND)


def _class_of(labels_Q: Labels, classes: Labels) -> Labels:
    """Return the place of each label in `classes`, one after the last where it is not there."""
    place_Q = np.searchsorted(classes, labels_Q)
    there_Q = classes[np.minimum(place_Q, len(classes) - 1)] == labels_Q
    return np.where(there_Q, place_Q, len(classes))


def _require_own_rows(own_rows_Q: Labels, gallery_rows: int) -> None:
    if own_rows_Q[-1] >= gallery_rows or gallery_rows < 2:
        raise DataError(
            f"leave-one-out of query {own_rows_Q[-1]} in a gallery of {gallery_rows} rows",
            remedy="give a gallery that begins with the queries, and has two rows at least",
        )

"""Leave-one-out metrics of the val split, which select the checkpoint and may end the training.

Shapes: n rows of this process, N rows of all processes or of a block, D dimensions, Q queries,
B queries of a block, R ranks.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from arcloop.distributed.process_group import current_process_group
from arcloop.evaluation.metrics.retrieval import (
    Floats,
    PerQuery,
    average_precision_at_r,
    concatenate,
    recall_at_k,
)
from arcloop.evaluation.metrics.sample import sampled_rows
from arcloop.evaluation.metrics.verification import SimilarityHistogram, pair_counter
from arcloop.retrieval.embed import Embeddings, Labels
from arcloop.retrieval.exact_search import block_shape, scan_gallery, top_k
from arcloop.retrieval.exclusion import Excluded

_WORST = {
    "val_map_at_r": 0.0, "val_top1": 0.0, "val_recall_at_5": 0.0, "val_eer": 1.0,
    "val_margin": -2.0,
}  # fmt: skip
_K = 5
_MAX_RANKED_QUERIES = 10_000
_MAX_NEIGHBOURS = 10_000_000  # of all queries; limits the time if classes are large
_MAX_COMPARED_QUERIES = 1_000  # for EER and margin, which compare a query with every row
_MEMORY_MB = 64


def val_metrics(embeddings_nD: Tensor, labels_n: Tensor) -> dict[str, float]:
    """Compute the metrics of the val split. Collective: every rank must call it.

    Rank 0 gathers the rows of all ranks in CPU memory, so the values are the same for any number
    of processes.

    Args:
        embeddings_nD: Rows of this process, of norm 1, any floating type; the concatenated rows of
            all ranks are in the order of the split.
        labels_n: int64, at least 0.

    Returns:
        See `leave_one_out_metrics`.
    """
    group = current_process_group()
    parts = group.gather(lambda: (embeddings_nD.float().cpu().numpy(), labels_n.cpu().numpy()))

    def compute() -> dict[str, float]:
        assert parts is not None
        rows_ND, labels_N = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return leave_one_out_metrics(rows_ND, labels_N)

    return group.broadcast(compute)


def leave_one_out_metrics(rows_ND: Embeddings, labels_N: Labels) -> dict[str, float]:
    """Compare rows with all other rows.

    Each row is a query against the other rows, unless it is the only row of its class. Of more than
    10,000 queries (fewer if classes are large), a sample with a fixed seed is ranked. EER and
    margin compare 1,000 queries, also a fixed sample, with every other row. Of equally similar
    rows, the first one is nearer.

    Args:
        rows_ND: float32, of norm 1.
        labels_N: int64, at least 0.

    Returns:
        "val_top1", the share of queries whose nearest row has their class; "val_recall_at_5", the
        share of queries with a row of their class among the 5 nearest; "val_map_at_r", see
        `average_precision_at_r`; "val_eer", the equal error rate of all pairs; "val_margin", the
        mean of the similarity to the nearest row of the same class minus the similarity to the
        nearest row of another class (-1 if there is none), in [-2, 2]. If no class has two rows
        or an embedding is not finite, every metric has its worst value.

    >>> rows = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    >>> found = leave_one_out_metrics(rows, np.array([0, 0, 1, 1]))
    >>> found["val_top1"], round(found["val_margin"], 2)
    (0.75, 0.3)
    """
    size_N = np.bincount(labels_N)[labels_N]
    queries = np.flatnonzero(size_N > 1)
    # Training reports a divergence at the end of the epoch, after this validation.
    if not len(queries) or not np.isfinite(rows_ND).all():
        return dict(_WORST)
    num_ranks = max(int(size_N.max()) - 1, _K)
    most = max(1, min(_MAX_RANKED_QUERIES, _MAX_NEIGHBOURS // num_ranks))
    ranked = queries[sampled_rows(len(queries), most)]
    compared = queries[sampled_rows(len(queries), _MAX_COMPARED_QUERIES)]
    return {
        **_ranking_metrics(rows_ND, labels_N, ranked, num_ranks),
        **_pair_metrics(rows_ND, labels_N, compared),
    }


def _ranking_metrics(
    rows_ND: Embeddings, labels_N: Labels, queries: Labels, num_ranks: int
) -> dict[str, float]:
    """Rank the rows for each query, at least R and 5 of them."""
    relevant_Q = np.bincount(labels_N)[labels_N[queries]] - 1

    def score(block: slice, _: Floats, rows_BR: Labels) -> PerQuery:
        labels_B = labels_N[queries[block]]
        labels_BR = np.where(rows_BR >= 0, labels_N[rows_BR], -1)
        same_BR = labels_BR == labels_B[:, None]
        return {
            "val_map_at_r": average_precision_at_r(same_BR, relevant_Q[block]),
            "val_top1": same_BR[:, 0].copy(),
            f"val_recall_at_{_K}": recall_at_k(labels_BR, labels_B, _K),
        }

    shape = block_shape(_MEMORY_MB, num_ranks, len(queries))
    own, gallery = Excluded(queries), lambda: iter([(rows_ND, labels_N)])
    parts = top_k(score, rows_ND[queries], own, gallery, num_ranks, shape)
    return {name: float(values_Q.mean()) for name, values_Q in concatenate(parts).items()}


def _pair_metrics(rows_ND: Embeddings, labels_N: Labels, queries: Labels) -> dict[str, float]:
    """Compare queries with all other rows."""
    labels_Q, own = labels_N[queries], Excluded(queries)
    same_Q, other_Q = np.full((2, len(queries)), -1, np.float32)
    pairs = SimilarityHistogram()
    count_pairs = pair_counter(pairs, labels_Q, own, np.ones(len(queries), bool))

    def visit(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        count_pairs(block, first_row, sim_BN, labels_N)
        sim_BN[own.cells(block, first_row, len(labels_N))] = -1
        is_same_BN = labels_Q[block, None] == labels_N
        for best_B, is_of_kind_BN in ((same_Q[block], is_same_BN), (other_Q[block], ~is_same_BN)):
            np.maximum(best_B, sim_BN.max(axis=1, initial=-1, where=is_of_kind_BN), out=best_B)

    shape = block_shape(_MEMORY_MB, batch=len(queries))
    scan_gallery(visit, rows_ND[queries], lambda: iter([(rows_ND, labels_N)]), shape)
    eer = pairs.eer()
    return {
        "val_eer": _WORST["val_eer"] if isinstance(eer, str) else eer,
        "val_margin": float((same_Q - other_Q).mean(dtype=np.float64)),
    }

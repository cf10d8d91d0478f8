"""The open-set threshold: the similarity under which an answer is "unknown"."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from arcloop.retrieval.embed import Chunks, Embeddings, Labels, rebatch
from arcloop.retrieval.exact_search import BlockShape, block_shape, scan_gallery

_BATCH_ROWS, _MEMORY_MB = 2048, 64


def calibrate_threshold(
    val: Iterable[tuple[Embeddings, Labels]], gallery: Chunks, far: float
) -> float:
    """Choose the threshold that lets a share `far` of unknown things pass as known.

    Each val image plays an unknown thing: its own class is taken out of the gallery, and its best
    match among the other classes is what an unknown image would be answered with. The threshold is
    the least float32 that no more than a share `far` of these best matches reach; an answer is
    "unknown" if its similarity is under it. A class never seen may be more alike to those in the
    gallery than they are to each other: the rate is met for things as different as the classes are.

    Args:
        val: (float32 [B, D] rows of norm 1, int64 [B] labels), neither trained on nor in the
            gallery.
        gallery: Gives (embeddings, labels) of the gallery anew, in chunks.
        far: False accept rate in [0, 1].

    Returns:
        A similarity; -1, under which nothing is unknown, if the gallery has no other class.

    Raises:
        DataError: An embedding is not finite.
    """
    shape = block_shape(_MEMORY_MB, batch=_BATCH_ROWS)
    best: list[Embeddings] = []
    for embeddings_QD, labels_Q in rebatch(val, _BATCH_ROWS):
        best.append(_best_of_another_class(embeddings_QD, labels_Q, gallery, shape))
    return least_threshold(np.concatenate(best), far)


def _best_of_another_class(
    embeddings_QD: Embeddings, labels_Q: Labels, gallery: Chunks, shape: BlockShape
) -> Embeddings:
    best_Q = np.full(len(labels_Q), -np.inf, np.float32)

    def see(block: slice, _: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        sim_BN[labels_Q[block, None] == labels_N] = -np.inf
        np.maximum(best_Q[block], sim_BN.max(axis=1), out=best_Q[block])

    scan_gallery(see, embeddings_QD, gallery, shape)
    return best_Q


def least_threshold(best_Q: Embeddings, far: float) -> float:
    """Return the least float32 that no more than a share `far` of similarities reach.

    Args:
        best_Q: Similarities; -inf: there is none.
        far: A share in [0, 1].

    >>> round(least_threshold(np.array([0.1, 0.4, 0.2, 0.3], np.float32), far=0.25), 6)
    0.3
    """
    falling = np.sort(best_Q)[::-1]
    allowed = int(far * len(falling))
    if allowed >= len(falling) or falling[allowed] == -np.inf:
        return -1.0
    return float(np.nextafter(falling[allowed], np.float32(np.inf)))

"""Open-set threshold: the similarity below which the answer is "unknown"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.config.schema import CalibrationSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.retrieval.embed import Chunks, Embeddings, Gallery, Labels, embed, rebatch
from arcloop.retrieval.exact_search import BlockShape, block_shape, scan_gallery
from arcloop.runtime.searcher import Model

MIN_ERRORS = 30
_BATCH_ROWS, _MEMORY_MB = 2048, 64


def calibrate_on_val(
    model: Model, images: Store, gallery: Gallery, settings: CalibrationSettings, batch_size: int
) -> float:
    """Embed evenly spaced rows of the val split and calibrate the threshold on them.

    Args:
        model: Embeds the val split.
        images: The store.
        gallery: The gallery.
        settings: False accept rate and number of val rows.
        batch_size: Images embedded at a time.

    Returns:
        The threshold, see `calibrate_threshold`.
    """
    rows = images.rows("val")
    step = -(-rows // settings.max_queries)
    with track("calibrate", rows) as advance:

        def sampled() -> Iterator[Any]:
            first = 0
            for batch_NHWC, labels in images.batches("val", batch_size):
                advance(len(labels))
                yield batch_NHWC[first::step], labels[first::step]
                first = (first - len(labels)) % step

        return calibrate_threshold(embed(model, sampled()), gallery.chunks, settings.far)


def calibrate_threshold(
    val: Iterable[tuple[Embeddings, Labels]], gallery: Chunks, far: float
) -> float:
    """Compute the threshold at which a share `far` of unknown queries is accepted.

    Each val image is used as an unknown query: rows of its class are excluded from the gallery, and
    its best match is the most similar other row. The threshold is the smallest float32 at which at
    most a share `far` of these best matches is accepted. The rate is valid for unknown classes that
    differ from the gallery classes as much as those differ from each other.

    Args:
        val: (float32 [B, D] rows of norm 1, int64 [B] labels) of images that are neither in train
            nor in the gallery.
        gallery: Returns an iterator over (embeddings, labels) of the gallery.
        far: False accept rate in [0, 1].

    Returns:
        A similarity; -1 (every query is accepted) if the gallery has no other class.

    Raises:
        DataError: An embedding is not finite.
    """
    shape = block_shape(_MEMORY_MB, batch=_BATCH_ROWS)
    best = [
        _best_of_another_class(embeddings_QD, labels_Q, gallery, shape)
        for embeddings_QD, labels_Q in rebatch(val, _BATCH_ROWS)
    ]
    return smallest_threshold(np.concatenate(best), far)


def _best_of_another_class(
    embeddings_QD: Embeddings, labels_Q: Labels, gallery: Chunks, shape: BlockShape
) -> Embeddings:
    """Return the largest cosine of each query to a gallery row of another class, [Q]."""
    best_Q = np.full(len(labels_Q), -np.inf, np.float32)

    def visit(block: slice, _: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        sim_BN[labels_Q[block, None] == labels_N] = -np.inf
        np.maximum(best_Q[block], sim_BN.max(axis=1), out=best_Q[block])

    scan_gallery(visit, embeddings_QD, gallery, shape)
    return best_Q


def min_trials(far: float) -> int:
    """Return the number of trials from which an error rate is measurable: the rule of 30.

    With at least 30 errors, the true rate is within 30% of the observed one with a confidence of
    90%, if trials are independent. Source: Doddington et al., "The NIST speaker recognition
    evaluation", Speech Communication 31 (2000).

    Args:
        far: The error rate in (0, 1].

    >>> min_trials(0.01), min_trials(1e-6), min_trials(1.0)
    (3000, 30000000, 30)
    """
    return math.ceil(round(MIN_ERRORS / far, 6))  # without the rounding error of the quotient


def smallest_threshold(best_Q: npt.NDArray[np.floating], far: float) -> float:
    """Return the lowest threshold that accepts at most a share `far` of similarities.

    Args:
        best_Q: Similarities, float32 or float64 like the threshold; -inf: none.
        far: A share in [0, 1].

    >>> round(smallest_threshold(np.array([0.1, 0.4, 0.2, 0.3], np.float32), far=0.25), 6)
    0.3
    """
    falling = np.sort(best_Q)[::-1]
    allowed = int(far * len(falling))
    if allowed >= len(falling) or falling[allowed] == -np.inf:
        return -1.0
    return float(np.nextafter(falling[allowed], falling.dtype.type(np.inf)))

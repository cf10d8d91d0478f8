"""Verification of pairs of images: ROC, EER and TAR at FAR.

Pairs are counted in bins of d = 1 - cosine, so that memory is constant. With o = 2**-12, a bin is a
range of float32 values of d + o that differ in the last 11 bits of the mantissa only. Its width is
2**-24 up to d = 2**-12 and at most 2**-12 times d + o above it. So similarities near 1, of
saturated embeddings, are counted exactly: float32 cosines from 0.5 to 1 are multiples of 2**-24,
6e-8. Smaller differences are lost in the rounding of float32 products, also in a search.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.retrieval.calibration import MIN_ERRORS, min_trials
from arcloop.retrieval.embed import Embeddings, Labels
from arcloop.retrieval.exact_search import Visitor
from arcloop.retrieval.exclusion import Excluded

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rates = dict[str, float | str]
"""Name -> value, or the sentence that says why it is not measurable."""

_OFFSET = np.float32(2.0**-12)
_LOST_BITS = 11  # of the 23 bits of a float32 mantissa
_FIRST_KEY = int(_OFFSET.view(np.int32)) >> _LOST_BITS
NUM_BINS = (int((2 + _OFFSET).view(np.int32)) >> _LOST_BITS) + 2 - _FIRST_KEY
FARS = {f"1e-{digits}": 10.0**-digits for digits in range(2, 7)}
_ROWS = 16  # queries counted at a time; temporary arrays then fit in the cache


def least_similarities() -> Floats:
    """Return the least cosine of each bin, float64 [NUM_BINS], descending from 1 to -1."""
    edges = np.arange(_FIRST_KEY, _FIRST_KEY + NUM_BINS, dtype=np.int32) << _LOST_BITS
    return np.maximum(1.0 + float(_OFFSET) - edges.view(np.float32).astype(np.float64), -1.0)


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic; pairs at or above the threshold are accepted.

    Attributes:
        far: False accept rate: accepted share of the pairs of different classes, ascending.
        tar: True accept rate: accepted share of the pairs of the same class, ascending.
        threshold: Similarity, descending from the first float32 above 1 to -1; exact to 2**-23.
    """

    far: Floats
    tar: Floats
    threshold: Floats


class SimilarityHistogram:
    """Counts pairs by similarity; see the module for the bins.

    Attributes:
        same: int64 [NUM_BINS], pairs of the same class, most similar first.
        different: int64 [NUM_BINS], pairs of different classes.
    """

    def __init__(self) -> None:
        self.same = np.zeros(NUM_BINS, np.int64)
        self.different = np.zeros(NUM_BINS, np.int64)

    def update(
        self,
        sim_QG: npt.NDArray[np.float32],
        labels_Q: Counts,
        labels_G: Counts,
        queries: Counts | None = None,
    ) -> None:
        """Add the pairs of a block.

        Args:
            sim_QG: Cosines; values outside [-1, 1] due to rounding count as -1 or 1.
            labels_Q: Classes of the queries.
            labels_G: Classes of the gallery rows.
            queries: Indices of the queries to add; None: all.

        >>> pairs = SimilarityHistogram()
        >>> pairs.update(np.array([[1.0, -1.0]], np.float32), np.array([7]), np.array([7, 8]))
        >>> int(pairs.same[0]), int(pairs.different[-1])
        (1, 1)
        """
        queries = np.arange(len(sim_QG)) if queries is None else queries
        for start in range(0, len(queries), _ROWS):
            rows = queries[start : start + _ROWS]
            bins_QG = _bins(sim_QG[rows])
            same = _count(bins_QG[labels_Q[rows, None] == labels_G])
            self.same += same
            self.different += _count(bins_QG.ravel()) - same

    def add(self, sim_P: npt.NDArray[np.float32], same_P: Bools) -> None:
        """Add pairs; `same_P`: whether they are of the same class."""
        self.same += _count(_bins(sim_P[same_P]))
        self.different += _count(_bins(sim_P[~same_P]))

    def remove(self, sim_P: npt.NDArray[np.float32], same_P: Bools) -> None:
        """Remove pairs, such as those of a query with itself; `same_P`: of the same class."""
        self.same -= _count(_bins(sim_P[same_P]))
        self.different -= _count(_bins(sim_P[~same_P]))

    def merge(self, other: SimilarityHistogram) -> None:
        """Add the pairs of another histogram."""
        self.same += other.same
        self.different += other.different

    def roc(self) -> Roc:
        """Return the curve at the edges of the bins; there must be pairs of both kinds."""
        far = _accepted(self.different)
        tar = _accepted(self.same)
        above_1 = np.nextafter(np.float32(1), np.float32(2))
        threshold = np.concatenate([[above_1], least_similarities()])
        return Roc(far / far[-1], tar / tar[-1], threshold)

    def eer(self) -> float | str:
        """Return the equal error rate, where the false accept and false reject rates are equal.

        Both rates are interpolated linearly between adjacent thresholds.

        Returns:
            A rate in [0, 1]; a sentence if there are no pairs of one of the two kinds.
        """
        if not (self.same.any() and self.different.any()):
            return "not measurable without pairs of both kinds"
        roc = self.roc()
        far, frr = roc.far, 1 - roc.tar
        after = int(np.argmax(far >= frr))  # at the first threshold, 1, far = 0 and frr = 1
        gap_before = frr[after - 1] - far[after - 1]
        gap_after = far[after] - frr[after]
        share = gap_before / (gap_before + gap_after)
        return float(far[after - 1] + share * (far[after] - far[after - 1]))

    def tar_at_far(self, far: float) -> float | str:
        """Return the true accept rate at the lowest threshold with a false accept rate up to `far`.

        Returns:
            A rate in [0, 1]; a sentence if there are no pairs of the same class, or too few pairs
            of different classes.

        >>> SimilarityHistogram().tar_at_far(0.01)
        'not measurable without pairs of the same class'
        """
        wrong, right = _accepted(self.different), _accepted(self.same)
        if not right[-1]:
            return "not measurable without pairs of the same class"
        if reason := too_few(int(wrong[-1]), "pairs of different classes", far):
            return reason
        edge = int(np.searchsorted(wrong, wrong[-1] * far, side="right")) - 1
        return float(right[edge] / right[-1])

    def compute(self) -> Rates:
        """Return the EER and the TAR at several FAR."""
        tars = {f"tar_at_far_{name}": self.tar_at_far(far) for name, far in FARS.items()}
        return {"eer": self.eer(), **tars}


def too_few(trials: int, kind: str, rate: float = 1.0) -> str:
    """Return why an error rate is not measurable with a number of trials; "": it is.

    Args:
        trials: Number of trials.
        kind: What they are, in the plural.
        rate: The error rate; 1 if it is not known in advance.

    >>> too_few(150, "pairs", 0.01)
    'not measurable with 150 pairs; 3,000 are needed to expect 30 errors'
    >>> too_few(3000, "pairs", 0.01)
    ''
    """
    needed = min_trials(rate)
    if trials >= needed:
        return ""
    return (
        f"not measurable with {trials:,} {kind}; {needed:,} are needed to expect "
        f"{MIN_ERRORS} errors"
    )


def pair_counter(
    pairs: SimilarityHistogram, labels_B: Labels, excluded: Excluded, compared_B: Bools
) -> Visitor:
    """Return a function that adds blocks of similarities to a histogram, from several threads.

    Args:
        pairs: The histogram.
        labels_B: Class of each query of the batch.
        excluded: Gallery rows that make no pair with a query.
        compared_B: Whether the pairs of each query are counted.
    """
    lock = threading.Lock()

    def visit(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        if not compared_B[block].any():
            return
        counted = SimilarityHistogram()
        counted.update(sim_BN, labels_B[block], labels_N, np.flatnonzero(compared_B[block]))
        queries, columns = excluded.cells(block, first_row, len(labels_N))
        compared = compared_B[block][queries]
        queries, columns = queries[compared], columns[compared]
        same = labels_B[block][queries] == labels_N[columns]
        counted.remove(sim_BN[queries, columns], same)
        with lock:
            pairs.merge(counted)

    return visit


def _bins(similarities: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """Return the bin of each cosine."""
    shifted = 1 + _OFFSET - similarities.astype(np.float32, copy=False)
    np.clip(shifted, _OFFSET, 2 + _OFFSET, out=shifted)
    keys = shifted.view(np.int32)  # non-negative floats and their bit patterns have one order
    keys += (1 << _LOST_BITS) - 1  # round up, so that a bin contains its least similarity
    keys >>= _LOST_BITS
    keys -= _FIRST_KEY
    return keys


def _count(bins: npt.NDArray[np.int32]) -> Counts:
    return np.bincount(bins, minlength=NUM_BINS)


def _accepted(counts: Counts) -> Counts:
    """Return the accepted count at each edge of a bin, from none to all."""
    return np.concatenate([[0], counts.cumsum()])

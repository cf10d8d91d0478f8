"""Verification of pairs (ROC, EER, TAR at FAR) and open-set identification (DIR at FAR).

Pairs are counted in bins of similarity of 1e-4, so that memory is constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.retrieval.calibration import smallest_threshold
from arcloop.retrieval.embed import Embeddings, Labels
from arcloop.retrieval.exact_search import Visitor
from arcloop.retrieval.exclusion import Excluded

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NUM_BINS = 20_000
_TAR_FARS = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}
DIR_FARS = {"1e-1": 1e-1, "1e-2": 1e-2}
_ROWS = 8  # queries counted at a time; temporary arrays then fit in the cache


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic; pairs at or above the threshold are accepted.

    Attributes:
        far: False accept rate: accepted share of the pairs of different classes, ascending.
        tar: True accept rate: accepted share of the pairs of the same class, ascending.
        threshold: Similarity, descending from 1 to -1.
    """

    far: Floats
    tar: Floats
    threshold: Floats


class SimilarityHistogram:
    """Counts pairs by similarity in bins of 1e-4 over [-1, 1].

    All rates and thresholds are exact up to the width of a bin.

    Attributes:
        same: int64 [NUM_BINS], pairs of the same class.
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
        >>> int(pairs.same[-1]), int(pairs.different[0])
        (1, 1)
        """
        queries = np.arange(len(sim_QG)) if queries is None else queries
        for start in range(0, len(queries), _ROWS):
            rows = queries[start : start + _ROWS]
            bins_QG = _bins(sim_QG[rows])
            same = _count(bins_QG[labels_Q[rows, None] == labels_G])
            self.same += same
            self.different += _count(bins_QG.ravel()) - same

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
        return Roc(far / far[-1], tar / tar[-1], np.linspace(1, -1, NUM_BINS + 1))

    def eer(self) -> float | None:
        """Return the equal error rate, where the false accept and false reject rates are equal.

        Both rates are interpolated linearly between adjacent thresholds.

        Returns:
            A rate in [0, 1]; None if there are no pairs of one of the two kinds.
        """
        if not (self.same.any() and self.different.any()):
            return None
        roc = self.roc()
        far, frr = roc.far, 1 - roc.tar
        after = int(np.argmax(far >= frr))  # at the first threshold, 1, far = 0 and frr = 1
        gap_before = frr[after - 1] - far[after - 1]
        gap_after = far[after] - frr[after]
        share = gap_before / (gap_before + gap_after)
        return float(far[after - 1] + share * (far[after] - far[after - 1]))

    def tar_at_far(self, far: float) -> float | None:
        """Return the true accept rate at the lowest threshold with a false accept rate up to `far`.

        Returns:
            A rate in [0, 1]; None if there are no pairs of the same class, or fewer than 1 / far
            pairs of different classes, too few to measure this rate.
        """
        wrong, right = _accepted(self.different), _accepted(self.same)
        if wrong[-1] * far < 1 or not right[-1]:
            return None
        edge = int(np.searchsorted(wrong, wrong[-1] * far, side="right")) - 1
        return float(right[edge] / right[-1])

    def compute(self) -> dict[str, float]:
        """Return EER and TAR at several FAR, without metrics for which there are too few pairs."""
        rates = {"eer": self.eer()}
        rates |= {f"tar_at_far_{name}": self.tar_at_far(far) for name, far in _TAR_FARS.items()}
        return {name: value for name, value in rates.items() if value is not None}


def dir_at_far(
    best_Q: Floats, right_Q: Bools, best_other_Q: Floats, known_Q: Bools, far: float
) -> float | None:
    """Return the detection and identification rate at a false accept rate (DIR@FAR, rank 1).

    It is the share of known queries whose nearest gallery row has their class and a similarity of
    at least the threshold. The threshold is the lowest one at which at most a share FAR of the
    unknown queries has a gallery row with at least this similarity. Source: Phillips et al.,
    "Evaluation Methods in Face Recognition", Handbook of Face Recognition, 2011.

    A query is known if its class is in the gallery, else unknown. If there are no unknown queries,
    every query is also used as an unknown one, compared with the gallery without its own class.

    Args:
        best_Q: Similarity of the nearest gallery row.
        right_Q: Whether that row has the query's class.
        best_other_Q: Similarity of the nearest row of another class; -inf: none.
        known_Q: Whether the query's class is in the gallery.
        far: A share in (0, 1].

    Returns:
        A rate in [0, 1]; None if there are no known queries, or fewer than 1 / far unknown ones.

    >>> best, other = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.2, 0.7])
    >>> right = known = np.array([True, True, False])
    >>> dir_at_far(best, right, other, known, far=1.0)
    1.0
    """
    unknown = best_other_Q[best_other_Q > -np.inf] if known_Q.all() else best_Q[~known_Q]
    if len(unknown) * far < 1 or not known_Q.any():
        return None
    accepted_Q = best_Q >= smallest_threshold(unknown, far)
    return int((right_Q & accepted_Q).sum()) / int(known_Q.sum())


def open_set_metrics(
    best_Q: Floats, right_Q: Bools, best_other_Q: Floats, known_Q: Bools
) -> dict[str, float]:
    """Return DIR at several FAR, without rates for which there are too few queries."""
    rates = {
        f"dir_at_far_{name}": dir_at_far(best_Q, right_Q, best_other_Q, known_Q, far)
        for name, far in DIR_FARS.items()
    }
    return {name: value for name, value in rates.items() if value is not None}


def pair_counter(
    pairs: dict[int, SimilarityHistogram], labels_B: Labels, excluded: Excluded, compared_B: Bools
) -> Visitor:
    """Return a function that adds blocks of similarities to the histogram of their first query.

    Different threads visit blocks of different queries, so each block has its own histogram.
    """

    def visit(block: slice, first_row: int, sim_BN: Embeddings, labels_N: Labels) -> None:
        if not compared_B[block].any():
            return
        histogram = pairs.setdefault(block.start, SimilarityHistogram())
        histogram.update(sim_BN, labels_B[block], labels_N, np.flatnonzero(compared_B[block]))
        queries, columns = excluded.cells(block, first_row, len(labels_N))
        counted = compared_B[block][queries]
        queries, columns = queries[counted], columns[counted]
        same = labels_B[block][queries] == labels_N[columns]
        histogram.remove(sim_BN[queries, columns], same)

    return visit


def _bins(similarities: npt.NDArray[np.floating]) -> Counts:
    """Return the bin of each cosine; 1 and above give NUM_BINS, which `_count` adds to the last."""
    scaled = similarities * similarities.dtype.type(NUM_BINS / 2)
    scaled += similarities.dtype.type(NUM_BINS / 2)
    return np.asarray(scaled.astype(np.int64))  # truncation gives values just below -1 bin 0


def _count(bins: Counts) -> Counts:
    counts = np.bincount(bins, minlength=NUM_BINS + 1)
    counts[-2] += counts[-1]
    return counts[:-1]


def _accepted(counts: Counts) -> Counts:
    """Return the accepted count at each bin edge, from threshold 1 (none) to -1 (all)."""
    return np.concatenate([[0], counts[::-1].cumsum()])

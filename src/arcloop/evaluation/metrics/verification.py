"""Verification: are two images of one class? Decided by a threshold on their similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

NUM_BINS = 20_000
BIN_WIDTH = 2 / NUM_BINS
_FARS = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}
_ROWS = 8  # binned at a time: temporary arrays that a processor's cache holds


@dataclass(frozen=True)
class Roc:
    """What becomes of pairs as the threshold falls; a pair is accepted from the threshold upwards.

    Attributes:
        far: False accept rate: share of accepted pairs among those of different classes, rising.
        tar: True accept rate: share of accepted pairs among those of one class, rising.
        threshold: Similarity, falling from 1 to -1.
    """

    far: npt.NDArray[np.float64]
    tar: npt.NDArray[np.float64]
    threshold: npt.NDArray[np.float64]


class SimilarityHistogram:
    """Counts pairs by similarity in fine bins over [-1, 1], so in constant memory.

    All it tells is exact up to the width of a bin, 1e-4.

    Attributes:
        same: int64 [NUM_BINS], pairs of one class.
        different: int64 [NUM_BINS], pairs of different classes.
    """

    def __init__(self) -> None:
        self.same = np.zeros(NUM_BINS, np.int64)
        self.different = np.zeros(NUM_BINS, np.int64)

    def add(
        self,
        sim_QG: npt.NDArray[np.float32],
        labels_Q: npt.NDArray[np.int64],
        labels_G: npt.NDArray[np.int64],
        counted: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Count the pairs of a block.

        Args:
            sim_QG: Cosines; what rounding puts outside [-1, 1] counts as -1 or 1.
            labels_Q: Classes of the queries.
            labels_G: Classes of the gallery rows.
            counted: Queries whose pairs are counted; None: all.

        >>> pairs = SimilarityHistogram()
        >>> pairs.add(np.array([[1.0, -1.0]], np.float32), np.array([7]), np.array([7, 8]))
        >>> int(pairs.same[-1]), int(pairs.different[0])
        (1, 1)
        """
        queries = np.arange(len(sim_QG)) if counted is None else counted
        for start in range(0, len(queries), _ROWS):
            rows = queries[start : start + _ROWS]
            bins_QG = bins(sim_QG[rows])
            same = count_bins(bins_QG[labels_Q[rows, None] == labels_G])
            self.same += same
            self.different += count_bins(bins_QG.ravel()) - same

    def remove(self, sim_P: npt.NDArray[np.float32]) -> None:
        """Take back pairs of one class that were counted and are none: a row with itself."""
        self.same -= count_bins(bins(sim_P))

    def merge(self, other: SimilarityHistogram) -> None:
        """Count the pairs of another histogram too."""
        self.same += other.same
        self.different += other.different

    def roc(self) -> Roc:
        """Return the curve at the edges of the bins; there must be pairs of both kinds."""
        far = accepted_from_above(self.different)
        tar = accepted_from_above(self.same)
        threshold = np.linspace(1, -1, NUM_BINS + 1)
        return Roc(far / far[-1], tar / tar[-1], threshold)

    def eer(self) -> float | None:
        """Return the equal error rate: where as many are falsely accepted as falsely rejected.

        Between the two thresholds around it, both rates are taken as straight lines.

        Returns:
            A rate in [0, 1]; None if there are no pairs of one kind.
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

    def threshold_at_far(self, far: float) -> float | None:
        """Return the lowest threshold at which no larger share than `far` is falsely accepted.

        Returns:
            A similarity; None if there are fewer than 1 / far pairs of different classes, for then
            such a rate cannot be told from zero.
        """
        point = self._point_at_far(far)
        return None if point is None else 1 - point * BIN_WIDTH

    def tar_at_far(self, far: float) -> float | None:
        """Return the share of pairs of one class accepted at `threshold_at_far(far)`.

        Returns:
            A share in [0, 1]; None where the threshold is, or if there are no such pairs.
        """
        point = self._point_at_far(far)
        if point is None or not self.same.any():
            return None
        accepted = accepted_from_above(self.same)
        return float(accepted[point] / accepted[-1])

    def _point_at_far(self, far: float) -> int | None:
        return point_at_far(self.different, far)


def verification_metrics(pairs: SimilarityHistogram) -> dict[str, float]:
    """Return EER and TAR at some FAR; what is undefined for these pairs is left out."""
    metrics = {"eer": pairs.eer()}
    metrics |= {f"tar_at_far_{name}": pairs.tar_at_far(far) for name, far in _FARS.items()}
    return {name: value for name, value in metrics.items() if value is not None}


def bins(similarities: npt.NDArray[np.floating]) -> Counts:
    """Return the bin of each cosine; what rounding puts outside [-1, 1] counts as -1 or 1."""
    scaled = similarities * similarities.dtype.type(NUM_BINS / 2)
    scaled += similarities.dtype.type(NUM_BINS / 2)
    # Truncation sends what lies a rounding under -1 to bin 0; 1 and above have a bin of their own,
    # which `count_bins` lets join the last: two passes over a block less than clipping.
    return np.asarray(scaled.astype(np.int64))


def count_bins(found: Counts) -> Counts:
    """Return how many similarities are in each bin, int64 [NUM_BINS]."""
    counts = np.bincount(found, minlength=NUM_BINS + 1)
    counts[-2] += counts[-1]
    return counts[:-1]


def accepted_from_above(counts: Counts) -> Counts:
    """Return how many are accepted as the threshold falls edge by edge from 1, none, to -1, all."""
    return np.concatenate([[0], counts[::-1].cumsum()])


def point_at_far(counts: Counts, far: float) -> int | None:
    """Return the edge, counted from 1 downwards, of the lowest threshold with no larger rate.

    Args:
        counts: int64 [NUM_BINS], those who should not be accepted.
        far: A share in (0, 1].

    Returns:
        None if there are fewer than 1 / far of them: such a rate cannot be told from zero.
    """
    accepted = accepted_from_above(counts)
    if accepted[-1] * far < 1:
        return None
    return int(np.searchsorted(accepted, accepted[-1] * far, side="right")) - 1

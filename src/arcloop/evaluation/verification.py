"""Verification: are two images of one class? Decided by a threshold on their similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.exact_search import Chunks, block_shape, map_blocks, similarity_blocks
from arcloop.evaluation.leave_one_out import no_own_rows, own_cells

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

NUM_BINS = 20_000
BIN_WIDTH = 2 / NUM_BINS
_FARS = {"1e-2": 1e-2, "1e-3": 1e-3, "1e-4": 1e-4}


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

    def add(self, sim_QG: npt.NDArray[np.float32], same_QG: npt.NDArray[np.bool_]) -> None:
        """Count the pairs of a block.

        Args:
            sim_QG: Cosines; what rounding puts outside [-1, 1] counts as -1 or 1.
            same_QG: Whether query and gallery row are of one class.

        >>> pairs = SimilarityHistogram()
        >>> pairs.add(np.array([[1.0, -1.0]], np.float32), np.array([[True, False]]))
        >>> int(pairs.same[-1]), int(pairs.different[0])
        (1, 1)
        """
        scaled = sim_QG * np.float32(NUM_BINS / 2)
        scaled += np.float32(NUM_BINS / 2)
        # Truncation sends what lies a rounding under -1 to bin 0; 1 and above have a bin of their
        # own, which joins the last: two passes over the block less than clipping.
        bins_QG = scaled.astype(np.int64)
        same = _count(bins_QG[same_QG])
        self.same += same
        self.different += _count(bins_QG.ravel()) - same

    def merge(self, other: SimilarityHistogram) -> None:
        """Count the pairs of another histogram too."""
        self.same += other.same
        self.different += other.different

    def remove(self, other: SimilarityHistogram) -> None:
        """Count the pairs of another histogram no more; they are among those of this one."""
        self.same -= other.same
        self.different -= other.different

    def roc(self) -> Roc:
        """Return the curve at the edges of the bins; there must be pairs of both kinds."""
        far = _accepted(self.different)
        tar = _accepted(self.same)
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
        accepted = _accepted(self.same)
        return float(accepted[point] / accepted[-1])

    def _point_at_far(self, far: float) -> int | None:
        accepted = _accepted(self.different)
        if accepted[-1] * far < 1:
            return None
        return int(np.searchsorted(accepted, accepted[-1] * far, side="right")) - 1


def compare_pairs(
    embeddings_QD: Embeddings,
    labels_Q: Labels,
    gallery: Chunks,
    memory_mb: int,
    own_rows_Q: Labels | None = None,
) -> SimilarityHistogram:
    """Count all pairs of a query and a gallery row that is not the query itself.

    Args:
        embeddings_QD: float32, rows of norm 1.
        labels_Q: Their classes.
        gallery: Gives the gallery anew.
        memory_mb: Bound on what is held beside queries and gallery, in MiB.
        own_rows_Q: Gallery row that is the query itself; -1: none. None: no query has one.
    """
    rows, columns = block_shape(memory_mb)

    def count(
        embeddings_BD: Embeddings, labels_B: Labels, own_rows_B: Labels
    ) -> SimilarityHistogram:
        pairs, with_itself = SimilarityHistogram(), SimilarityHistogram()
        blocks = similarity_blocks(embeddings_BD, gallery, columns)
        for first_row, sim_BN, labels_N in blocks:
            same_BN = labels_B[:, None] == labels_N
            own = own_cells(own_rows_B, first_row, len(labels_N))
            pairs.add(sim_BN, same_BN)
            if len(own[0]):
                with_itself.add(sim_BN[own], same_BN[own])
        pairs.remove(with_itself)
        return pairs

    if own_rows_Q is None:
        own_rows_Q = no_own_rows(len(labels_Q))
    pairs = SimilarityHistogram()
    for part in map_blocks(count, embeddings_QD, labels_Q, rows, own_rows_Q):
        pairs.merge(part)
    return pairs


def verification_metrics(pairs: SimilarityHistogram) -> dict[str, float]:
    """Return EER and TAR at some FAR; what is undefined for these pairs is left out."""
    metrics = {"eer": pairs.eer()}
    metrics |= {f"tar_at_far_{name}": pairs.tar_at_far(far) for name, far in _FARS.items()}
    return {name: value for name, value in metrics.items() if value is not None}


def _count(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    counts = np.bincount(bins, minlength=NUM_BINS + 1)
    counts[-2] += counts[-1]
    return counts[:-1]


def _accepted(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pairs accepted as the threshold falls edge by edge from 1, where there are none, to -1."""
    return np.concatenate([[0], counts[::-1].cumsum()])

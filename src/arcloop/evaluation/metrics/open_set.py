"""Open-set identification: who is it, if it is anybody who is enrolled?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.verification import (
    NUM_BINS,
    accepted_from_above,
    bins,
    count_bins,
    point_at_far,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FARS = {"1e-1": 1e-1, "1e-2": 1e-2}


class OpenSetCounts:
    """Counts queries by the similarity of their best match, in bins of 1e-4.

    The detection and identification rate at a false accept rate (DIR@FAR, rank 1) is the share of
    known queries whose nearest gallery row is of their class and at least as similar as the
    threshold; the threshold is the lowest at which no larger share than FAR of unknown queries has
    a gallery row that similar (Phillips et al., "Evaluation Methods in Face Recognition", Handbook
    of Face Recognition, 2011). Known are queries whose class is in the gallery. Unknown are

    - those whose class is not, if there are any;
    - else all queries, each with the rows of its own class taken out of the gallery.

    Attributes:
        identified: int64 [NUM_BINS], known queries with a right nearest row, by its similarity.
        absent: int64 [NUM_BINS], queries of no gallery class, by that of their nearest row.
        impostor: int64 [NUM_BINS], known queries, by that of the nearest row of another class.
        known: Number of known queries.
    """

    def __init__(self) -> None:
        self.identified = np.zeros(NUM_BINS, np.int64)
        self.absent = np.zeros(NUM_BINS, np.int64)
        self.impostor = np.zeros(NUM_BINS, np.int64)
        self.known = 0

    def add(self, best_Q: Floats, right_Q: Bools, best_other_Q: Floats, known_Q: Bools) -> None:
        """Count queries.

        Args:
            best_Q: Similarity of the nearest gallery row.
            right_Q: Whether it is of the query's class.
            best_other_Q: Similarity of the nearest row of another class; -inf: there is none.
            known_Q: Whether the query's class is in the gallery.

        >>> queries = OpenSetCounts()
        >>> best, other = np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.2, 0.7])
        >>> queries.add(best, np.array([True, True, False]), other, np.array([True, True, False]))
        >>> queries.dir_at_far(1.0)
        1.0
        """
        there_Q = best_other_Q > -np.inf
        self.identified += count_bins(bins(best_Q[right_Q]))
        self.absent += count_bins(bins(best_Q[~known_Q]))
        self.impostor += count_bins(bins(best_other_Q[known_Q & there_Q]))
        self.known += int(known_Q.sum())

    def merge(self, other: OpenSetCounts) -> None:
        """Count the queries of another part too."""
        self.identified += other.identified
        self.absent += other.absent
        self.impostor += other.impostor
        self.known += other.known

    def dir_at_far(self, far: float) -> float | None:
        """Return the detection and identification rate at a false accept rate.

        Returns:
            A share in [0, 1]; None if there are no known queries, or fewer than 1 / far unknown
            ones.
        """
        unknown = self.absent if self.absent.any() else self.impostor
        point = point_at_far(unknown, far)
        if point is None or not self.known:
            return None
        return int(accepted_from_above(self.identified)[point]) / self.known

    def metrics(self) -> dict[str, float]:
        """Return DIR at some FAR; what is undefined for these queries is left out."""
        rates = {f"dir_at_far_{name}": self.dir_at_far(far) for name, far in _FARS.items()}
        return {name: value for name, value in rates.items() if value is not None}

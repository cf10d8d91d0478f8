"""Sums of what was measured of each query, whose means are metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.retrieval_metrics import Bools, Floats


@dataclass
class QuerySums:
    """Sums over queries of any number of measures; parts of a split are merged in its order.

    Attributes:
        sums: Measure -> its sum over the queries of each batch. They are kept apart and added at
            the end, so that the last bits do not tell how many processes there were.

    >>> sums = QuerySums()
    >>> sums.add({"hit": np.array([True, False, True])})
    >>> sums.means(4)
    {'hit': 0.5}
    """

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: Mapping[str, Floats | Bools | npt.NDArray[np.float32]]) -> None:
        """Count a batch: measure -> its value for each query."""
        for name, values_Q in values.items():
            self.sums.setdefault(name, []).append(float(values_Q.sum()))

    def merge(self, other: QuerySums) -> None:
        """Count the queries that follow too."""
        for name, sums in other.sums.items():
            self.sums.setdefault(name, []).extend(sums)

    def means(self, queries: int) -> dict[str, float]:
        """Return each sum over so many queries; nothing if there are none."""
        return {name: math.fsum(sums) / queries for name, sums in self.sums.items() if queries}

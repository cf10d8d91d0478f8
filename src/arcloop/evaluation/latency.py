"""How long the index takes to answer. A time is no metric: two runs never agree on it."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.answers import Search

_MOST_QUERIES, _MOST_SECONDS = 200, 2.0
_NEIGHBOURS = 10


def search_times(search: Search, queries_QD: npt.NDArray[np.float32]) -> dict[str, float]:
    """Time searches of one query each, as a server makes them: 200, or two seconds of them.

    Args:
        search: The index.
        queries_QD: At least one row of norm 1.

    Returns:
        Median and 99th percentile, in milliseconds.

    >>> def search(queries, k):
    ...     return np.zeros((1, k), np.float32), np.zeros((1, k), np.int64)
    >>> list(search_times(search, np.ones((2, 1), np.float32)))
    ['search_p50_ms', 'search_p99_ms']
    """
    search(queries_QD[:1], _NEIGHBOURS)  # the first one also allocates
    end = time.monotonic() + _MOST_SECONDS
    seconds = []
    for query in range(min(len(queries_QD), _MOST_QUERIES)):
        start = time.perf_counter()
        search(queries_QD[query : query + 1], _NEIGHBOURS)
        seconds.append(time.perf_counter() - start)
        if time.monotonic() > end:
            break
    median, slow = np.percentile(seconds, [50, 99]) * 1e3
    return {"search_p50_ms": float(median), "search_p99_ms": float(slow)}

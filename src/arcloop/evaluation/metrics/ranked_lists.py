"""Metrics of given rankings with positive and junk rows, as on Revisited Oxford and Paris."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError

_PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def evaluate_ranked_lists(
    rankings: Iterable[npt.ArrayLike],
    ground_truth: Sequence[Mapping[str, npt.ArrayLike]],
    *,
    precision_at: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Compute mAP and mP@k by the protocols Easy, Medium and Hard.

    Radenović et al., "Revisiting Oxford and Paris", CVPR 2018. Junk rows are removed from a
    ranking. Easy: easy rows are relevant, hard ones are junk. Medium: both are relevant. Hard: hard
    rows are relevant, easy ones are junk. AP is the area under the precision-recall curve by the
    trapezoidal rule. P@k divides by the rank of the last relevant row if that is less than k.

    Args:
        rankings: Gallery rows of each query, best first; all easy, hard and junk rows are in it.
        ground_truth: "easy", "hard" and "junk" of each query: gallery rows; a missing key is an
            empty list. These are the entries of the `gnd` list that the authors publish.
        precision_at: The k of mP@k, at least 1.

    Returns:
        "map_<protocol>" and "mp_at_<k>_<protocol>", means over the queries that have relevant rows
        in the protocol, and "num_queries_<protocol>", their number. Means over no query are left
        out.

    Raises:
        DataError: The numbers of rankings and queries differ, or a relevant row is missing from a
            ranking or occurs twice.

    >>> truth = {"easy": [7], "hard": [3], "junk": [5]}
    >>> metrics = evaluate_ranked_lists([[5, 9, 7, 3]], [truth], precision_at=[1])
    >>> metrics["map_easy"], metrics["map_hard"], metrics["mp_at_1_medium"]
    (0.25, 0.25, 0.0)
    """
    values: dict[str, list[float]] = {}
    counts = dict.fromkeys((f"num_queries_{protocol}" for protocol in _PROTOCOLS), 0)
    number = 0
    for number, ranking in enumerate(rankings, 1):
        rows_G = np.asarray(ranking, np.int64)
        truth = ground_truth[number - 1] if number <= len(ground_truth) else {}
        kinds = {
            kind: np.isin(rows_G, np.asarray(truth.get(kind, ()), np.int64))
            for kind in ("easy", "hard", "junk")
        }
        for protocol, (relevant, junk) in _PROTOCOLS.items():
            same_G = np.any([kinds[kind] for kind in relevant], axis=0)
            kept_G = same_G | ~np.any([kinds[kind] for kind in junk], axis=0)
            wanted = len({int(row) for kind in relevant for row in np.ravel(truth.get(kind, ()))})
            found = len(np.unique(rows_G[same_G]))
            if not found == wanted == same_G.sum():
                raise DataError(
                    f"a ranking has {found} of {wanted} relevant rows, in {same_G.sum()} places",
                    where=f"ranking of query {number - 1}, protocol {protocol}",
                    remedy="rank the whole gallery, each row once",
                )
            if not wanted:
                continue
            counts[f"num_queries_{protocol}"] += 1
            ranks_R = np.flatnonzero(same_G[kept_G]) + 1
            values.setdefault(f"map_{protocol}", []).append(trapezoidal_average_precision(ranks_R))
            for k in precision_at:
                at = min(k, ranks_R[-1])
                precision = float((ranks_R <= at).sum() / at)
                values.setdefault(f"mp_at_{k}_{protocol}", []).append(precision)
    if number != len(ground_truth):
        raise DataError(f"{number} rankings for {len(ground_truth)} queries",
                        remedy="give one ranking for each query")  # fmt: skip
    return {name: float(np.mean(numbers)) for name, numbers in values.items()} | counts


def trapezoidal_average_precision(ranks_R: npt.NDArray[np.int64]) -> float:
    """Return the area under the precision-recall curve by the trapezoidal rule.

    Philbin et al., "Object retrieval with large vocabularies and fast spatial matching", CVPR 2007:
    the mean over the relevant rows of the precision before and after each of them.

    Args:
        ranks_R: Ranks of all relevant rows, from 1, ascending; at least one.

    >>> trapezoidal_average_precision(np.array([1, 4]))
    0.7083333333333333
    """
    found_R = np.arange(1, len(ranks_R) + 1)
    before_R = np.where(ranks_R == 1, 1.0, (found_R - 1) / np.maximum(ranks_R - 1, 1))
    return float((before_R + found_R / ranks_R).mean() / 2)

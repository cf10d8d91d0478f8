"""Open-set identification: queries whose class may be absent from the gallery.

A query is known if its class is in the gallery, else unknown. Error rates are named as in ISO/IEC
19795-1.

Shapes: Q queries.
"""

from __future__ import annotations

import numpy as np

from arcloop.evaluation.metrics.verification import Bools, Floats, Rates, too_few
from arcloop.retrieval.calibration import smallest_threshold

DIR_FARS = {"1e-1": 1e-1, "1e-2": 1e-2}
_NO_KNOWN = "not measurable without queries of known classes"
_NO_UNKNOWN = "not measurable without queries of unknown classes"


def dir_at_far(
    best_Q: Floats, right_Q: Bools, known_Q: Bools, unknown_U: Floats, far: float
) -> float:
    """Return the detection and identification rate at a false accept rate (DIR@FAR, rank 1).

    It is the share of known queries whose nearest gallery row has their class and a similarity of
    at least the threshold. The threshold is the lowest one at which at most a share FAR of the
    unknown queries has a gallery row with at least this similarity. Source: Phillips et al.,
    "Evaluation Methods in Face Recognition", Handbook of Face Recognition, 2011.

    Args:
        best_Q: Similarity of the nearest gallery row.
        right_Q: Whether that row has the query's class.
        known_Q: Whether the query's class is in the gallery; at least one.
        unknown_U: Similarity of the nearest gallery row of each unknown query.
        far: A share in (0, 1].

    Returns:
        A rate in [0, 1].

    >>> best, known = np.array([0.9, 0.8, 0.7]), np.array([True, True, False])
    >>> dir_at_far(best, known, known, best[~known], far=0.5)
    1.0
    """
    accepted_Q = best_Q >= smallest_threshold(unknown_U, far)
    return int((right_Q & accepted_Q).sum()) / int(known_Q.sum())


def unknown_auroc(best_Q: Floats, known_Q: Bools) -> float:
    """Return the area under the ROC of the detection of unknown queries.

    It is the probability that the nearest gallery row of a random known query is more similar than
    that of a random unknown query; equal similarities count one half. Source: Mann and Whitney,
    Annals of Mathematical Statistics 18 (1947).

    Args:
        best_Q: Similarity of the nearest gallery row.
        known_Q: Whether the query's class is in the gallery; at least one is and one is not.

    Returns:
        A probability in [0, 1].

    >>> unknown_auroc(np.array([0.9, 0.5, 0.5]), np.array([True, True, False]))
    0.75
    """
    known, unknown = best_Q[known_Q], np.sort(best_Q[~known_Q])
    wins = sum(int(np.searchsorted(unknown, known, side).sum()) for side in ("left", "right"))
    return wins / (2 * len(known) * len(unknown))


def open_set_metrics(best_Q: Floats, right_Q: Bools, best_other_Q: Floats, known_Q: Bools) -> Rates:
    """Return DIR at several FAR, and the AUROC of the detection of unknown queries.

    If there are no unknown queries, every query is also used as an unknown one for DIR, compared
    with the gallery without its own class.

    Args:
        best_Q: Similarity of the nearest gallery row.
        right_Q: Whether that row has the query's class.
        best_other_Q: Similarity of the nearest row of another class; -inf: none.
        known_Q: Whether the query's class is in the gallery.
    """
    rates: Rates = {}
    unknown_U = best_other_Q[best_other_Q > -np.inf] if known_Q.all() else best_Q[~known_Q]
    for name, far in DIR_FARS.items():
        reason = too_few(len(unknown_U), "unknown queries", far)
        if not known_Q.any():
            reason = _NO_KNOWN
        rates[f"dir_at_far_{name}"] = reason or dir_at_far(best_Q, right_Q, known_Q, unknown_U, far)
    reason = _too_few_queries(known_Q) or _too_few_queries(~known_Q, known=False)
    rates["unknown_auroc"] = reason or unknown_auroc(best_Q, known_Q)
    return rates


def error_rates_of_answers(answered_Q: Bools, right_Q: Bools, known_Q: Bools) -> Rates:
    """Return FPIR and FNIR, the error rates of the answers at the deployed threshold.

    The false positive identification rate is the share of unknown queries that get an answer. The
    false negative identification rate is the share of known queries that are not answered with
    their class. Source: ISO/IEC 19795-1.

    Args:
        answered_Q: Whether the similarity of the answer is at least the threshold.
        right_Q: Whether the answer is the query's class.
        known_Q: Whether the query's class is in the gallery.

    >>> known = np.arange(60) < 30
    >>> error_rates_of_answers(np.arange(60) < 33, np.arange(60) < 27, known)
    {'fpir': 0.1, 'fnir': 0.1}
    """
    answered_right_Q = answered_Q & right_Q
    return {
        "fpir": _too_few_queries(~known_Q, known=False) or float(answered_Q[~known_Q].mean()),
        "fnir": _too_few_queries(known_Q) or float((~answered_right_Q[known_Q]).mean()),
    }


def _too_few_queries(chosen_Q: Bools, *, known: bool = True) -> str:
    if not chosen_Q.any():
        return _NO_KNOWN if known else _NO_UNKNOWN
    return too_few(int(chosen_Q.sum()), f"queries of {'known' if known else 'unknown'} classes")

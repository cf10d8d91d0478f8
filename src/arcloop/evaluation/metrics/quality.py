"""Does the quality of an image predict wrong answers? The error-versus-reject characteristic.

Grother and Tabassi, Performance of Biometric Quality Measures, IEEE TPAMI 29(4), 2007.

Shapes: Q queries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]

_REJECTED = (10, 20)  # percent


def error_versus_reject(wrong_Q: npt.NDArray[np.bool_], quality_Q: Floats) -> Floats:
    """Compute the error of the remaining queries after those of lowest quality were rejected.

    Of queries with equal quality, those in lower rows are rejected first.

    Args:
        wrong_Q: Whether the answer to each query is wrong.
        quality_Q: Quality of each query; larger is better.

    Returns:
        float64 [Q], in [0, 1]; entry n is the share of wrong answers without the n queries of the
        lowest quality.

    >>> error_versus_reject(np.array([False, True, False, False]), np.array([3.0, 1.0, 2.0, 4.0]))
    array([0.25, 0.  , 0.  , 0.  ])
    """
    ordered_Q = wrong_Q[np.argsort(quality_Q, kind="stable")]
    left_Q = np.arange(len(ordered_Q), 0, -1)
    errors_Q: Floats = np.cumsum(ordered_Q[::-1])[::-1] / left_Q
    return errors_Q


def reject_metrics(
    wrong_Q: npt.NDArray[np.bool_], quality_Q: Floats | None, known_Q: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Return the error with 10% and with 20% of the queries rejected.

    Args:
        wrong_Q: Whether the answer to each query is wrong.
        quality_Q: Quality of each query; None for a model without quality, which has no metrics.
        known_Q: Whether each query can be answered correctly; the others are left out.

    >>> reject_metrics(np.arange(10) < 2, np.arange(10.0), np.full(10, True))
    {'error_at_reject_10pct': 0.1111111111111111, 'error_at_reject_20pct': 0.0}
    """
    if quality_Q is None or not known_Q.any():
        return {}
    error_Q = error_versus_reject(wrong_Q[known_Q], quality_Q[known_Q])
    return {f"error_at_reject_{p}pct": float(error_Q[p * len(error_Q) // 100]) for p in _REJECTED}

"""Reads metrics.json of an evaluation: numbers by name, and objects with more about them."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "metrics.json"


def is_pair_list_accuracy(name: str) -> bool:
    """Return whether a metric is the accuracy on a list of pairs.

    >>> is_pair_list_accuracy("pairs_lfw_accuracy"), is_pair_list_accuracy("pairs_lfw_eer")
    (True, False)
    """
    return name.startswith("pairs_") and name.endswith("_accuracy")


def read_metrics(evaluation: Path) -> dict[str, float]:
    """Return name -> number of the metrics of an evaluation.

    Args:
        evaluation: Folder of an `evaluation` artifact.

    Raises:
        OSError, ValueError: The file cannot be read.
    """
    content = json.loads((evaluation / FILE).read_bytes())
    return {name: value for name, value in content.items() if not isinstance(value, dict)}


def read_intervals(evaluation: Path) -> dict[str, tuple[float, float]]:
    """Return name -> ends of the 95% confidence interval, of the metrics that have one.

    Args:
        evaluation: Folder of an `evaluation` artifact.

    Raises:
        OSError, ValueError: The file cannot be read.
    """
    content = json.loads((evaluation / FILE).read_bytes())
    return {name: (low, high) for name, (low, high) in content.get("intervals", {}).items()}

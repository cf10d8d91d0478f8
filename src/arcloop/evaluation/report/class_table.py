"""The accuracy of every class: its order, classes.csv, and the searchable table of the report.

Shapes: Q queries, C classes, P classes with queries.
"""

from __future__ import annotations

import base64
import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arcloop.evaluation.query_results import Ints
from arcloop.retrieval.embed import Labels

Row = tuple[str, int, int, str]
"""Name of a class, wrong answers, queries, and the most frequent wrong answer; "": none."""

MAX_BYTES = 1_500_000
"""Maximum size of the packed table, so that a page is smaller than 5 MB."""


def worst_classes(right_C: Labels, total_C: Labels) -> Labels:
    """Return the classes with queries by ascending accuracy; of equal ones, most queries first.

    Args:
        right_C: Correctly answered queries of each class.
        total_C: Queries of each class.

    Returns:
        int64 [P].

    >>> worst_classes(np.array([1, 0, 0, 0]), np.array([1, 1, 2, 0]))
    array([2, 1, 0])
    """
    labels_P = np.flatnonzero(total_C)
    total_P = total_C[labels_P]
    return labels_P[np.lexsort((labels_P, -total_P, right_C[labels_P] / total_P))]


def frequent_mistakes(label_Q: Ints, predicted_Q: Ints, num_classes: int) -> Labels:
    """Return the most frequent wrong answer to the queries of each class, [C]; -1: none.

    Of equally frequent answers, the one with the lowest label is returned.

    >>> frequent_mistakes(np.array([0, 0, 0, 1, 2]), np.array([2, 1, 2, 1, -1]), 3)
    array([ 2, -1, -1])
    """
    wrong_Q = (label_Q != predicted_Q) & (predicted_Q >= 0)
    codes_Q = label_Q[wrong_Q].astype(np.int64) * num_classes + predicted_Q[wrong_Q]
    codes, counts = np.unique(codes_Q, return_counts=True)
    actual, answer = np.divmod(codes[np.lexsort((-codes, counts))], num_classes)
    found_C = np.full(num_classes, -1)
    found_C[actual] = answer  # the last one of each class
    return found_C


def class_rows(
    right_C: Labels, total_C: Labels, mistaken_C: Labels, classes: Sequence[str]
) -> list[Row]:
    """Return a row for each class with queries, the worst first; see `worst_classes`."""
    labels_P = worst_classes(right_C, total_C)
    columns = (labels_P, total_C[labels_P] - right_C[labels_P], total_C[labels_P],
               mistaken_C[labels_P])  # fmt: skip
    return [
        (classes[label], wrong, total, classes[mistaken] if mistaken >= 0 else "")
        for label, wrong, total, mistaken in zip(*(c.tolist() for c in columns), strict=True)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "wrong", "queries", "most_frequent_mistake"])
        writer.writerows(rows)


def pack_rows(rows: Sequence[Row], max_bytes: int = MAX_BYTES) -> tuple[str, int]:
    """Compress rows for the script of the page.

    Returns:
        JSON, compressed by gzip, in base64; and the number of rows that it contains: the first
        ones, if all of them would be larger than `max_bytes`.
    """
    count = len(rows)
    while True:
        text = json.dumps(rows[:count], separators=(",", ":"))
        packed = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
        if len(packed) <= max_bytes or count == 0:
            return packed, count
        count = min(count - 1, count * max_bytes // len(packed))

"""Comparison with pytorch-metric-learning and open-metric-learning, each in a separate process.

Head: forward and backward of ArcFace with 128 dimensions and batches of 64. Metrics: as many
queries as gallery rows, 20 per class. `arcloop.evaluation.evaluate_retrieval` computes Recall@k,
Precision@k, MAP@R, R-precision, MRR and nDCG; pytorch-metric-learning computes Precision@1, MAP@R
and R-precision; open-metric-learning computes Recall@k, Precision@20 and MAP@20.

The full evaluation is what `arcloop evaluate` computes for the same rows. It has no target, because
the other libraries compute less: it also searches an index and compares the result with the exact
search, and computes confusion and mistakes, EER and ROC from 200 million pairs, open-set
identification, pairs in folds, and k-means clusters. MiB are counted beyond the memory of the
process after a small piece of the same work.

open-metric-learning requires torchvision and numpy < 2, which are incompatible with this
environment. Its own files are used, with a stub for the one class of torchvision that they import
and do not use. Its MAP@k divides by the number of hits found, not by R, so its value differs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import Comparison, Section, Size, in_process

TITLE = "Against metric-learning libraries"
_MODULES = {"pml": "pytorch_metric_learning", "oml": "oml"}
_EVALUATION = "full evaluation"
_Result = dict[str, float]


def measure(size: Size) -> Section:
    """Measure; ARCLOOP_PEERS names another Python interpreter that has the libraries."""
    peers = os.environ.get("ARCLOOP_PEERS")
    python = peers or sys.executable
    here = [who for who, name in _MODULES.items() if peers or importlib.util.find_spec(name)]
    classes, rows_each = (10, 10_000, 100_000), (10_000, 50_000)
    work = [("head", count) for count in size.of(classes[1:2], classes, classes)]
    work += [("metrics", count) for count in size.of((2_000,), rows_each, rows_each)]
    section = Section()
    rows: list[dict[str, Any]] = []
    for what, count in work:
        results: dict[str, list[_Result]] = {who: [] for who in ("arcloop", *here)}
        if what == "metrics":
            results[_EVALUATION] = []
        for _ in range(1 if (what, count) == ("metrics", 50_000) else size.of(1, 1, 3)):
            for who, found in results.items():
                who_what = ("arcloop", "evaluation") if who == _EVALUATION else (who, what)
                found.append(
                    in_process("benchmarks.peers.libraries", *who_what, str(count), python=python)
                )
        named = f"{what}, {count:,} classes" if what == "head" else f"{what}, {count:,} x {count:,}"
        for who, found in results.items():
            found.sort(key=lambda one: one["s"])
            middle = found[len(found) // 2]
            rows.append({"work": named, "library": who, "ms": 1000 * middle["s"],
                         "MiB": middle["mib"], "loss or MAP": middle["found"]})  # fmt: skip
        for who in here:
            section.comparisons.extend(_compared(named, results["arcloop"], who, results[who], 1.0))
            if what == "metrics":
                whole = f"{_EVALUATION}, {count:,} x {count:,}"
                section.comparisons.extend(
                    _compared(whole, results[_EVALUATION], who, results[who], None)
                )
    section.tables["each library"] = rows
    for who in _MODULES:
        if who not in here:
            section.notes.append(f"{_MODULES[who]} is not installed and was not measured.")
    return section


def _compared(
    named: str, ours: list[_Result], who: str, theirs: list[_Result], target: float | None
) -> Iterator[Comparison]:
    for name, key, unit in (("speed", "s", "1/s"), ("memory", "mib", "1/MiB")):
        mine, others = ([max(one[key], 1e-9) for one in results] for results in (ours, theirs))
        if key == "mib" and max(*mine, *others) < 1:
            continue  # too small to compare
        yield Comparison(
            f"{named}: {name}, against {who}", [1 / value for value in mine],
            [1 / value for value in others], unit, target,
        )  # fmt: skip

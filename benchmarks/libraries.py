"""Against pytorch-metric-learning and open-metric-learning on equal work, each in its own process.

ArcFace, forward and backward: 128 dimensions, batches of 64. Metrics: as many queries as gallery
rows, 20 to a class; `arcloop.evaluation.evaluate_retrieval` counts Recall@k, Precision@k, MAP@R,
R-precision, MRR and nDCG, pytorch-metric-learning Precision@1, MAP@R and R-precision,
open-metric-learning Recall@k, Precision@20 and MAP@20. The whole judgement is what `arcloop
evaluate` makes of the same rows, told beside the others' metrics without an aim, for they do less:
it searches an index too and holds its answers against the exact ones, and counts confusion and
mistakes, 200 million pairs by similarity for EER and ROC, open-set identification, pairs in folds,
and clusters by k-means. MiB are beyond what the process held after a small piece of the same work.
Open-metric-learning asks for torchvision and numpy < 2, which cannot be here beside this torch: its
own files are used, with a stand-in for the one class of torchvision that they import and do not
use. Its MAP@k divides by the hits that were found, not by R, so its value differs.
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
_JUDGEMENT = "the whole judgement"
_Told = dict[str, float]


def measure(size: Size) -> Section:
    """Set ARCLOOP_PEERS to a Python that has the libraries, if this one has them not."""
    peers = os.environ.get("ARCLOOP_PEERS")
    python = peers or sys.executable
    here = [who for who, name in _MODULES.items() if peers or importlib.util.find_spec(name)]
    classes, rows_each = (10, 10_000, 100_000), (10_000, 50_000)
    work = [("head", count) for count in size.of(classes[1:2], classes, classes)]
    work += [("metrics", count) for count in size.of((2_000,), rows_each, rows_each)]
    section = Section()
    rows: list[dict[str, Any]] = []
    for what, count in work:
        told: dict[str, list[_Told]] = {who: [] for who in ("arcloop", *here)}
        if what == "metrics":
            told[_JUDGEMENT] = []
        for _ in range(1 if (what, count) == ("metrics", 50_000) else size.of(1, 1, 3)):
            for who, found in told.items():
                who_what = ("arcloop", "judgement") if who == _JUDGEMENT else (who, what)
                found.append(
                    in_process("benchmarks.peers.libraries", *who_what, str(count), python=python)
                )
        named = f"{what}, {count:,} classes" if what == "head" else f"{what}, {count:,} x {count:,}"
        for who, found in told.items():
            found.sort(key=lambda one: one["s"])
            middle = found[len(found) // 2]
            rows.append({"work": named, "library": who, "ms": 1000 * middle["s"],
                         "MiB": middle["mib"], "loss or MAP": middle["found"]})  # fmt: skip
        for who in here:
            section.comparisons.extend(_compared(named, told["arcloop"], who, told[who], 1.0))
            if what == "metrics":
                whole = f"{_JUDGEMENT}, {count:,} x {count:,}"
                section.comparisons.extend(_compared(whole, told[_JUDGEMENT], who, told[who], None))
    section.tables["each library"] = rows
    for who in _MODULES:
        if who not in here:
            section.notes.append(f"{_MODULES[who]} is not installed here: not measured.")
    return section


def _compared(
    named: str, ours: list[_Told], who: str, theirs: list[_Told], target: float | None
) -> Iterator[Comparison]:
    for name, key, unit in (("speed", "s", "1/s"), ("memory", "mib", "1/MiB")):
        mine, others = ([max(one[key], 1e-9) for one in told] for told in (ours, theirs))
        if key == "mib" and max(*mine, *others) < 1:
            continue  # nothing that could be compared
        yield Comparison(
            f"{named}: {name}, against {who}", [1 / value for value in mine],
            [1 / value for value in others], unit, target,
        )  # fmt: skip

"""Against pytorch-metric-learning and open-metric-learning on equal work, each in its own process.

ArcFace, forward and backward: 128 dimensions, batches of 64. Metrics: Recall@k and MAP@R of as many
queries as gallery rows, 20 to a class; arcloop counts EER, ROC, confusion and mistakes in the same
pass. MiB are beyond what the process held after a small piece of the same work. Open-metric-
learning asks for torchvision and numpy < 2, which cannot be here beside this torch: its own files
are used, with a stand-in for the one class of torchvision that they import and do not use. Its
MAP@k divides by the hits that were found, not by R, so its value differs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from benchmarks.measure import Comparison, Section, Size, in_process

TITLE = "Against metric-learning libraries"
_MODULES = {"pml": "pytorch_metric_learning", "oml": "oml"}


def measure(size: Size) -> Section:
    """Set ARCLOOP_PEERS to a Python that has the libraries, if this one has them not."""
    peers = os.environ.get("ARCLOOP_PEERS")
    python = peers or sys.executable
    here = [who for who, name in _MODULES.items() if peers or importlib.util.find_spec(name)]
    few, many = (10, 10_000), (10, 10_000, 100_000)
    work = [("head", count) for count in size.of(few, many, many)]
    work += [("metrics", count) for count in size.of((2_000,), (10_000, 50_000), (10_000, 50_000))]
    section = Section()
    rows: list[dict[str, Any]] = []
    for what, count in work:
        rounds = 1 if (what, count) == ("metrics", 50_000) else size.of(1, 2, 3)
        found: dict[str, list[dict[str, float]]] = {who: [] for who in ("arcloop", *here)}
        for _ in range(rounds):
            for who in found:
                found[who].append(
                    in_process("benchmarks.peers.libraries", who, what, str(count), python=python)
                )
        named = f"{what}, {count:,} classes" if what == "head" else f"{what}, {count:,} x {count:,}"
        for who, told in found.items():
            told.sort(key=lambda one: one["s"])
            middle = told[len(told) // 2]
            rows.append({"work": named, "library": who, "ms": 1000 * middle["s"],
                         "MiB": middle["mib"], "loss or MAP": middle["found"]})  # fmt: skip
        for who in here:
            for name, key in (("speed", "s"), ("memory", "mib")):
                ours, theirs = ([max(one[key], 1e-9) for one in found[w]] for w in ("arcloop", who))
                if key == "mib" and max(*ours, *theirs) < 1:
                    continue  # nothing that could be compared
                section.comparisons.append(
                    Comparison(f"{named}: {name}, against {who}", [1 / v for v in ours],
                               [1 / v for v in theirs], "1/s" if key == "s" else "1/MiB", 1.0)
                )  # fmt: skip
    section.tables["each library"] = rows
    for who in _MODULES:
        if who not in here:
            section.notes.append(f"{_MODULES[who]} is not installed here: not measured.")
    return section

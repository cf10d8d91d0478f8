"""Time and memory with 1,000 to 100,000 classes.

The first table shows a training step of the head in one process. The second shows evaluation and
report of embeddings of 64 dimensions, of which one in 20 is a query and the others are the gallery.
Its memory is the peak minus that of a small evaluation before it. The ratios compare the largest
number of classes with 10 classes and as many rows; the targets are at most 1.5 times the memory and
at most twice the time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.heads import WAYS, measure_head
from benchmarks.measure import Comparison, Section, Size, in_process, peak_mib

TITLE = "Thousands of classes"
_DIM, _SPREAD, _FEW = 64, 0.8, 10
_QUERIES = 20  # one in 20 rows is a query
_MAX_PAGE_MIB = 5


def measure(size: Size) -> Section:
    rows = size.of(20_000, 200_000, 200_000)
    counts = [n for n in (1_000, 10_000, 100_000) if n <= rows // 2]
    heads = []
    for classes in counts:
        for way in WAYS:
            found = measure_head(classes, way, processes=1)
            heads.append({
                "classes": classes, "head": way, "ms per step": found and found["ms"],
                "peak MiB": found and found["mib"],
            })  # fmt: skip
    results = {n: in_process("benchmarks.classes", str(n), str(rows)) for n in (_FEW, *counts)}
    table = [
        {"classes": n, "evaluate, s": one["evaluate_s"], "report, s": one["report_s"],
         "peak MiB": one["mib"], "page, MiB": one["page_mib"]}
        for n, one in results.items()
    ]  # fmt: skip
    few, many = results[_FEW], results[counts[-1]]
    seconds = [one["evaluate_s"] + one["report_s"] for one in (few, many)]
    of = f"{_FEW} classes / {counts[-1]:,}"
    comparisons = [
        Comparison(f"time, {of}", [1 / seconds[1]], [1 / seconds[0]], "1/s", 1 / 2),
        Comparison(f"memory, {of}", [1 / many["mib"]], [1 / few["mib"]], "1/MiB", 1 / 1.5),
        Comparison("page, 5 MiB / size", [1 / many["page_mib"]], [1 / _MAX_PAGE_MIB], "1/MiB", 1),
    ]
    tables = {"a training step of the head": heads, f"evaluation of {rows:,} rows": table}
    return Section(comparisons, tables)


def _embeddings(classes: int, rows: int, seed: int) -> tuple[Any, Any]:
    """Return unit vectors around one direction per class, and their labels."""
    centres_CD = np.random.default_rng(0).standard_normal((classes, _DIM), np.float32)
    labels_N = np.arange(rows, dtype=np.int64) % classes
    noise_ND = np.random.default_rng(seed).standard_normal((rows, _DIM), np.float32)
    rows_ND = centres_CD[labels_N] + _SPREAD * noise_ND
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True), labels_N


def _batches(rows_ND: Any, labels_N: Any, rows: int) -> Iterator[tuple[Any, Any]]:
    for start in range(0, len(labels_N), rows):
        yield rows_ND[start : start + rows], labels_N[start : start + rows]


def _evaluate(classes: int, rows: int, folder: Path) -> dict[str, float]:
    """Evaluate one in 20 rows as queries against the others as gallery, and write the report."""
    import faiss

    from arcloop.config.composition import build, compose_config
    from arcloop.evaluation import (
        EvaluationSetup,
        check_gate,
        evaluate_embeddings,
        write_report,
    )
    from arcloop.runtime.searcher import search

    settings = build(compose_config(), "evaluate")
    names = [f"class-{label:06d}" for label in range(classes)]
    gallery_GD, labels_G = _embeddings(classes, rows - rows // _QUERIES, seed=1)
    queries_QD, labels_Q = _embeddings(classes, rows // _QUERIES, seed=2)
    index = faiss.IndexFlatIP(_DIM)
    index.add(gallery_GD)
    start = time.perf_counter()
    setup = EvaluationSetup(
        gallery=lambda: _batches(gallery_GD, labels_G, 8192),
        gallery_labels=labels_G, search=partial(search, index), classes=names, settings=settings,
        threshold=0.0, num_queries=len(labels_Q),
    )  # fmt: skip
    result = evaluate_embeddings(_batches(queries_QD, labels_Q, 512), setup)
    evaluated = time.perf_counter()
    picture = np.zeros((28, 28, 1), np.uint8)
    write_report(
        folder, result, title="classes", classes=names, image=lambda *_: picture, curves=[],
        facts=[], config_yaml="", lineage=[],
        gate=check_gate(result.metrics, settings.gate, result.intervals, None),
    )  # fmt: skip
    return {
        "evaluate_s": evaluated - start,
        "report_s": time.perf_counter() - evaluated,
        "page_mib": (folder / "report.html").stat().st_size / 2**20,
        "top1": result.metrics["top1"],
    }


def _run(classes: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _evaluate(_FEW, 200, Path(folder))  # imports what is imported at first use
        before = peak_mib()
        found = _evaluate(classes, rows, Path(folder))
    print(json.dumps(found | {"mib": peak_mib() - before}))


if __name__ == "__main__":
    _run(int(sys.argv[1]), int(sys.argv[2]))

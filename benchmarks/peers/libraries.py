"""Measure one task of one library in a separate process: `LIBRARY TASK SIZE` -> JSON.

LIBRARY is arcloop, pml (pytorch-metric-learning) or oml (open-metric-learning). TASK is `head`,
forward and backward of ArcFace over SIZE classes; `metrics`, Recall@k and MAP@R of SIZE queries in
a gallery of SIZE rows; or `evaluation`, all that `arcloop evaluate` computes for them (arcloop
only).
Prints seconds, MiB beyond the memory after the imports, and the result.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import peak_mib

DIM, BATCH, SCALE, MARGIN, A_CLASS = 128, 64, 32.0, 0.5, 20


def main() -> None:
    who, what, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    work = _WORK[what](who, min(size, 40))
    work()  # loads what is loaded at first use
    before = peak_mib()
    work = _WORK[what](who, size)
    seconds, found = [], 0.0
    for _ in range(20 if what == "head" else 1):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    result = {"s": statistics.median(seconds), "mib": peak_mib() - before, "found": found}
    print(json.dumps(result))


def head(who: str, classes: int) -> Callable[[], float]:
    torch.manual_seed(0)
    module = _head(who, classes)
    features = torch.randn(BATCH, DIM, requires_grad=True)
    labels = torch.randint(classes, (BATCH,))

    def step() -> float:
        module.zero_grad()
        loss: Tensor = module(features, labels)
        loss.backward()
        return loss.item()

    return step


def _head(who: str, classes: int) -> nn.Module:
    if who == "arcloop":
        from arcloop.models import ArcFace

        return ArcFace(embedding_dim=DIM, num_classes=classes, scale=SCALE, margin=MARGIN,
                       easy_margin=False, size_margin=0.0, size_power=0.25)  # fmt: skip
    if who == "pml":
        from pytorch_metric_learning.losses import ArcFaceLoss

        degrees = float(np.degrees(MARGIN))
        return ArcFaceLoss(classes, DIM, margin=degrees, scale=SCALE)
    _stand_in()
    from oml.losses.arcface import ArcFaceLoss as OmlArcFace

    return OmlArcFace(DIM, classes, m=MARGIN, s=SCALE)


def _stand_in() -> None:
    """Import only the measured files of OML, without the other imports of its packages."""
    found = importlib.util.find_spec("oml")
    assert found is not None
    (root,) = found.submodule_search_locations or ()
    for name in ("losses", "utils", "functional"):
        package = types.ModuleType(f"oml.{name}")
        package.__path__ = [f"{root}/{name}"]
        sys.modules[f"oml.{name}"] = package
    ops = types.ModuleType("torchvision.ops")
    ops.MLP = nn.Module  # type: ignore[attr-defined]  # imported, but not used by ArcFace
    sys.modules |= {"torchvision": types.ModuleType("torchvision"), "torchvision.ops": ops}


def metrics(who: str, rows: int) -> Callable[[], float]:
    """Return the computation of a library's retrieval metrics; its result is MAP@R."""
    return {"arcloop": _ours, "pml": _pml, "oml": _oml}[who](*_embeddings(rows))


def evaluation(who: str, rows: int) -> Callable[[], float]:
    """Return the full evaluation of arcloop; its result is MAP@R."""
    assert who == "arcloop"
    return _evaluate(*_embeddings(rows))


def _embeddings(rows: int) -> tuple[Any, Any, Any, Any]:
    """Queries, their labels, gallery and its labels: unit vectors, 20 around each direction."""
    classes = max(1, rows // A_CLASS)
    random = np.random.default_rng(0)
    centres = random.standard_normal((classes, DIM), np.float32)

    def drawn() -> tuple[Any, Any]:
        labels = np.arange(rows, dtype=np.int64) % classes
        rows_ND = centres[labels] + 1.5 * random.standard_normal((rows, DIM), np.float32)
        return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True), labels

    return *drawn(), *drawn()


def _ours(queries: Any, truth: Any, gallery: Any, labels: Any) -> Callable[[], float]:
    from arcloop.evaluation import evaluate_retrieval

    def work() -> float:
        return evaluate_retrieval((queries, truth), (gallery, labels))["map_at_r"]

    return work


def _evaluate(queries: Any, truth: Any, gallery: Any, labels: Any) -> Callable[[], float]:
    import faiss

    from arcloop.config.composition import build, compose_config
    from arcloop.evaluation import EvaluationSetup, evaluate_embeddings
    from arcloop.runtime.searcher import search

    settings = build(compose_config(), "evaluate")
    names = [str(label) for label in range(int(labels.max()) + 1)]

    def chunks() -> Any:
        for first in range(0, len(gallery), 10_000):
            yield gallery[first : first + 10_000], labels[first : first + 10_000]

    def work() -> float:
        index = faiss.IndexFlatIP(DIM)
        index.add(gallery)
        batches = ((queries[i : i + 512], truth[i : i + 512]) for i in range(0, len(truth), 512))
        setup = EvaluationSetup(
            gallery=chunks,
            gallery_labels=labels,
            search=partial(search, index),
            classes=names,
            settings=settings,
            threshold=0.0,
            num_queries=len(truth),
        )
        result = evaluate_embeddings(batches, setup)
        return result.metrics["map_at_r"]

    return work


def _pml(queries: Any, truth: Any, gallery: Any, labels: Any) -> Callable[[], float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    wanted = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    calculator = AccuracyCalculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))

    def work() -> float:
        given = [torch.from_numpy(a) for a in (queries, truth, gallery, labels)]
        found = calculator.get_accuracy(*given, ref_includes_query=False)
        return float(found["mean_average_precision_at_r"])

    return work


def _oml(queries: Any, truth: Any, gallery: Any, labels: Any) -> Callable[[], float]:
    _stand_in()
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics

    def work() -> float:
        q, t, g, r = (torch.from_numpy(a) for a in (queries, truth, gallery, labels))
        _, found, relevant = batched_knn_qg(q, g, A_CLASS, labels_query=t, labels_gallery=r)
        values = calc_retrieval_metrics(
            found, relevant, cmc_top_k=(1, 5, 10), precision_top_k=(A_CLASS,),
            map_top_k=(A_CLASS,), verbose=False,
        )  # fmt: skip
        return float(values["map"][A_CLASS])

    return work


_WORK = {"head": head, "metrics": metrics, "evaluation": evaluation}

if __name__ == "__main__":
    main()

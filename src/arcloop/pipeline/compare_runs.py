"""Compares two finished runs on the same queries: metrics, flips, config, size and speed.

Shapes: Q queries, C classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts.metrics import read_metrics
from arcloop.config.recorded import flatten
from arcloop.data import Store
from arcloop.data.store.matching import other_labels
from arcloop.errors import ArcloopError
from arcloop.evaluation import QueryResults, load_query_results
from arcloop.evaluation.compare import Comparison, Flip, compare
from arcloop.evaluation.report.page import Pictures
from arcloop.pipeline.diff import RunFacts
from arcloop.pipeline.same_queries import (
    SPEED,
    EvaluatedRun,
    require_same_task,
    with_same_queries,
)
from arcloop.retrieval import load_model
from arcloop.runtime.searcher import MODEL

_TIMED_IMAGES, _TIMED_SECONDS = 64, 2.0


@dataclass(frozen=True)
class RunComparison:
    """Two runs on the same queries. Differences are those of B minus A.

    Attributes:
        run_a: Folder of A.
        run_b: Folder of B.
        comparison: B, the candidate, compared with A, the incumbent.
        classes: Class names; a label is a position in the list.
        pictures_a: Images of the gallery of A; None if the store was not found.
        pictures_b: Images of the queries and of the gallery of B; None with `pictures_a`.
        config: Key -> values of A and B, of the settings that differ; None: it has no such key.
        measures: Name -> values of A and B: model_bytes, index_bytes, embedding_dim,
            images_per_second (embedding), search_p50_ms and search_p99_ms (one query).
        is_measured: Whether images_per_second was measured now, in turn, and not recorded when the
            galleries were embedded.
    """

    run_a: Path
    run_b: Path
    comparison: Comparison
    classes: Sequence[str]
    pictures_a: Pictures | None
    pictures_b: Pictures | None
    config: Mapping[str, tuple[str | None, str | None]]
    measures: Mapping[str, tuple[float | None, float | None]]
    is_measured: bool

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types; queries and answers have their files."""
        compared, worst = self.comparison, self.comparison.worst_class
        return {
            "run_a": str(self.run_a),
            "run_b": str(self.run_b),
            "queries": compared.queries,
            "resampled": compared.resampled,
            "metrics": {name: _as_a_and_b(change) for name, change in compared.metrics.items()},
            "only_a_right": compared.negative_flips,
            "only_b_right": compared.positive_flips,
            "p_value": compared.p_value,
            "worst_class": _as_a_and_b(worst),
            "flips": {
                "only_a_right": [self.describe(flip) for flip in compared.flips],
                "only_b_right": [self.describe(flip) for flip in compared.gains],
            },
            "config": {
                key: dict(zip("ab", both, strict=True)) for key, both in self.config.items()
            },
            "measures": {
                name: dict(zip("ab", both, strict=True)) for name, both in self.measures.items()
            },
            "measured_now": self.is_measured,
        }

    def describe(self, flip: Flip) -> dict[str, Any]:
        """Return file and class of a query, and of both answers."""
        assert self.pictures_a is not None
        assert self.pictures_b is not None
        answers = {
            "a": (self.pictures_a, flip.incumbent_row, flip.incumbent_predicted,
                  flip.incumbent_similarity),
            "b": (self.pictures_b, flip.row, flip.predicted, flip.similarity),
        }  # fmt: skip
        return {"file": self.pictures_b.file("query", flip.query_row),
                "class": self.classes[flip.label]} | {
            side: {"file": pictures.file("gallery", row), "class": self.classes[predicted],
                   "similarity": similarity} if row >= 0 else None
            for side, (pictures, row, predicted, similarity) in answers.items()
        }  # fmt: skip


def compare_runs(
    a: Path, b: Path, *, num_flips: int = 24, measure: bool = False, device: str = "auto"
) -> RunComparison:
    """Compare two finished runs on the same queries.

    The stored results of each query are compared, and no image is embedded. Each run is represented
    by its evaluation, or by one of other data, if only that has the queries of the other run. Two
    stores of the same images in different sizes have the same queries.

    Args:
        a: Folder of a run.
        b: Folder of another run.
        num_flips: Maximum number of flipped queries in each direction.
        measure: Measure how fast both models embed on this machine, instead of reading what was
            recorded when the galleries were embedded. It is also measured if nothing was recorded.
        device: A torch device, or "auto", for the measurement.

    Raises:
        ArtifactError: A run or an evaluation is missing or damaged, or the runs have different
            queries or gallery images.
    """
    run_a, run_b, rows_Q = with_same_queries(*map(artifacts.without_link, (a, b)))
    require_same_task(run_a, run_b)
    stores = _open_stores(run_a, run_b)
    answers_a, answers_b = (load_query_results(run.evaluation.path) for run in (run_a, run_b))
    if rows_Q is not None:
        answers_a = _reorder(answers_a, rows_Q, other_labels(stores[1], stores[0]))
    if stores:
        classes = stores[1].classes
    else:
        classes = [f"class {label}" for label in range(int(answers_b.label.max()) + 1)]
    comparison = compare(
        answers_b, answers_a, read_metrics(run_b.evaluation.path),
        read_metrics(run_a.evaluation.path), name=str(run_a.path), classes=classes,
        num_flips=num_flips if stores else 0,
    )  # fmt: skip
    pictures = [Pictures.of(store) for store in stores]
    before, now = run_a.measures(), run_b.measures()
    if not (before.get(SPEED) and now.get(SPEED)):
        measure |= all((run.path / MODEL).is_file() for run in (run_a, run_b))
    measure &= bool(stores)
    if measure:
        before[SPEED], now[SPEED] = _measure_speed(run_a, run_b, stores, device)
    return RunComparison(
        run_a=run_a.path,
        run_b=run_b.path,
        comparison=comparison,
        classes=classes,
        pictures_a=pictures[0] if pictures else None,
        pictures_b=pictures[1] if pictures else None,
        config=_differences(_config(run_a), _config(run_b)),
        measures={name: (before.get(name), now.get(name)) for name in before | now},
        is_measured=measure,
    )


def _open_stores(a: EvaluatedRun, b: EvaluatedRun) -> list[Store]:
    """Open the stores of A and B; empty if one was moved or removed."""
    stores = []
    for run in (a, b):
        with contextlib.suppress(ArcloopError):  # a run without model.pt does not find its store
            stores.append(Store.open(run.find_store()))
    is_one = a.evaluation.parents["store"] == b.evaluation.parents["store"]
    return [*stores, *stores][:2] if is_one or len(stores) == 2 else []


def _reorder(
    results: QueryResults, rows_Q: npt.NDArray[np.int64], labels_C: npt.NDArray[np.int64]
) -> QueryResults:
    """Return the results of the queries in these rows, with other labels of the same classes."""
    arrays = {f.name: getattr(results, f.name) for f in fields(results) if f.name != "metrics"}
    taken = {name: array[rows_Q] for name, array in arrays.items() if array is not None}
    labels = np.append(labels_C, -1).astype(np.int32)  # label -1: no answer
    taken |= {name: labels[taken[name]] for name in ("label", "predicted")}
    metrics = {name: values_Q[rows_Q] for name, values_Q in results.metrics.items()}
    return replace(results, **taken, metrics=metrics)


def _config(run: EvaluatedRun) -> dict[str, str]:
    """Return the settings of the run, with those of the evaluation that is compared."""
    evaluated = flatten({"evaluate": run.evaluation.config["evaluate"]})
    return {**RunFacts.of(run.path).config, **{key: str(value) for key, value in evaluated}}


def _differences(
    a: Mapping[str, str], b: Mapping[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """Return key -> both values, of the keys whose values differ."""
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def _measure_speed(
    a: EvaluatedRun, b: EvaluatedRun, stores: Sequence[Store], device: str
) -> tuple[float, float]:
    """Embed the same queries with both models in turn; returns images per second of the fastest."""
    models = [load_model(run.path / MODEL, device) for run in (a, b)]
    rows = np.arange(min(_TIMED_IMAGES, stores[0].rows("query")))
    batches = [store.gather("query", rows)[0] for store in stores]
    fastest = [float("inf"), float("inf")]
    for model, batch in zip(models, batches, strict=True):
        model.embed(batch)  # the first call also compiles and allocates
    end = time.monotonic() + 2 * _TIMED_SECONDS
    while time.monotonic() < end:
        for number, (model, batch) in enumerate(zip(models, batches, strict=True)):
            start = time.perf_counter()
            model.embed(batch)
            fastest[number] = min(fastest[number], time.perf_counter() - start)
    return len(rows) / fastest[0], len(rows) / fastest[1]


def _as_a_and_b(change: Any) -> dict[str, Any]:
    """Return a change with the values of the incumbent and the candidate named a and b."""
    values = asdict(change)
    return {"a": values.pop("incumbent"), "b": values.pop("candidate"), **values}

"""Finds the evaluations of two runs that have the same queries and gallery images.

Shapes: Q queries.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.timings import read_timing
from arcloop.data import Store
from arcloop.data.store.matching import match_rows
from arcloop.errors import ArtifactError
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.summary import OTHER_DATA

SPEED = "images_per_second"


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with the evaluation that is compared.

    Attributes:
        path: Folder of the run.
        evaluation: The evaluation: that of the run, or one of other data.
    """

    path: Path
    evaluation: Artifact

    def find_store(self) -> Path:
        """Return the store with the queries.

        Raises:
            ArtifactError: It was moved or removed.
        """
        is_other = "store_dir" in self.evaluation.info
        return find_store(self.path, self.evaluation if is_other else None)

    def measures(self) -> dict[str, float]:
        """Return what is recorded of size and speed, see `RunComparison.measures`."""
        run, gallery = artifacts.read(self.path, "run"), self.evaluation.path.with_name("gallery")
        found: dict[str, float] = {"model_bytes": run.files["model.pt"]["size"]}
        with contextlib.suppress(ArtifactError):  # `arcloop clean` removes gallery and index
            found["index_bytes"] = artifacts.read(self.path / "index", "index").info["bytes"]
            found["embedding_dim"] = artifacts.read(gallery, "gallery").info["embedding_dim"]
        if speed := read_timing(gallery).get("per_second"):
            found[SPEED] = speed
        times = read_timing(self.evaluation.path)
        return found | {name: ms for name, ms in times.items() if name.startswith("search_")}


def with_same_queries(
    a: Path, b: Path
) -> tuple[EvaluatedRun, EvaluatedRun, npt.NDArray[np.int64] | None]:
    """Return an evaluation of each run on the same queries, preferably the own ones.

    Returns:
        Both runs; the row of A of each query of B, or None if the rows are equal.
    """
    pairs = list(itertools.product(_evaluations(a), _evaluations(b)))
    for run_a, run_b in pairs:
        if run_a.evaluation.parents["store"] == run_b.evaluation.parents["store"]:
            return run_a, run_b, None
    for run_a, run_b in pairs:
        store_a, store_b = (Store.open(run.find_store()) for run in (run_a, run_b))
        if (rows_Q := match_rows(store_b, store_a, "query")) is not None and match_rows(
            store_b, store_a, "gallery"
        ) is not None:
            return run_a, run_b, rows_Q
    own_a, own_b = pairs[0]
    store_a, store_b = (Store.open(run.find_store()) for run in (own_a, own_b))
    if store_a.image_shape == store_b.image_shape:
        remedy = (
            "evaluate one on the data of the other:"
            f" `arcloop evaluate run_dir={b} store_dir={store_a.artifact.path}`"
        )
    else:
        remedy = (
            "give the images the same splits in both sizes, by folders or the column split of a"
            " list, and evaluate or train again"
        )
    raise ArtifactError(
        "the runs were evaluated on different queries or against different galleries:"
        f" {store_a.artifact.path} and {store_b.artifact.path}",
        where=f"{a}, {b}",
        remedy=remedy,
    )


def _evaluations(run_dir: Path) -> list[EvaluatedRun]:
    """Return the evaluation of a run, then those of other data with their own gallery."""
    artifacts.read(run_dir, "run")
    found = [artifacts.load(run_dir / "evaluation", "evaluation")]
    for folder in sorted((run_dir / OTHER_DATA).glob("*/evaluation")):
        found += [artifacts.load(folder, "evaluation")] if artifacts.exists(folder) else []
    own, *others = (EvaluatedRun(run_dir, evaluation) for evaluation in found)
    return [own, *(o for o in others if o.evaluation.config["evaluate"]["gallery"] != "run")]


def require_same_task(a: EvaluatedRun, b: EvaluatedRun) -> None:
    """Check that both evaluations compare a query with the same rows of the gallery."""
    key = "exclude_same_group"
    values = [run.evaluation.config["evaluate"].get(key, False) for run in (a, b)]
    if values[0] != values[1]:
        raise ArtifactError(
            f"evaluate.{key} is {values[0]} for {a.path} and {values[1]} for {b.path}",
            where=b.evaluation.path,
            remedy=f"`arcloop evaluate run_dir={b.path} evaluate.{key}={str(values[0]).lower()}`",
        )

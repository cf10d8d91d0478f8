"""Results of each query, which are stored so that two models can be compared later.

Shapes: Q queries.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.errors import ArtifactError
from arcloop.evaluation.metrics.retrieval import Bools, PerQuery

FILE = "queries.npz"
_METRIC, _OPTIONAL = "metric/", ("group", "quality")
_INTS, _FLOATS = ("label", "predicted", "nearest"), ("similarity", "best_same", "best_other")
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class QueryResults:
    """The answer to each query and the values of the metrics that are means over queries.

    Attributes:
        label: int32 [Q], class of the query.
        predicted: int32 [Q], class of the nearest gallery row that the index found; -1: none.
        nearest: int32 [Q], that row; -1: none.
        similarity: float32 [Q], cosine similarity to that row.
        best_same: float32 [Q], similarity of the nearest row of the query's class, by exact search;
            -inf: none.
        best_other: float32 [Q], that of the nearest row of another class; -inf: none.
        best_is_right: bool [Q], whether the nearest row by exact search has the query's class.
        known: bool [Q], whether the query's class is in the gallery, not counting the query itself.
        group: int64 [Q], group of the query, e.g. the video that it is from; negative: a group of
            its own. None: the store has no groups.
        quality: float32 [Q], quality of the query's image. None: the model has no quality.
        metrics: Metric -> bool or float32 [Q], its value for each query.
    """

    label: Ints
    predicted: Ints
    nearest: Ints
    similarity: Floats
    best_same: Floats
    best_other: Floats
    best_is_right: Bools
    known: Bools
    group: npt.NDArray[np.int64] | None
    metrics: PerQuery
    quality: Floats | None = None

    @property
    def correct(self) -> Bools:
        """Whether each query was answered with its class, [Q]."""
        return np.asarray(self.label == self.predicted)

    @property
    def margin(self) -> Floats:
        """`best_same` - `best_other`, [Q]; NaN if the gallery has only one of the two."""
        with np.errstate(invalid="ignore"):
            margin_Q = self.best_same - self.best_other
        return np.where(np.isfinite(margin_Q), margin_Q, np.float32(np.nan))

    @classmethod
    def of(
        cls,
        facts: PerQuery,
        metrics: PerQuery,
        group_Q: npt.NDArray[np.int64] | None,
        quality: Sequence[Floats],
    ) -> QueryResults:
        """Convert arrays of any precision; `facts` also has "relevant", the R of each query.

        `quality` is given by batch.
        """
        ints: dict[str, Any] = {n: facts[n].astype(np.int32) for n in _INTS}
        floats: dict[str, Any] = {n: facts[n].astype(np.float32) for n in _FLOATS}
        return cls(
            **ints,
            **floats,
            best_is_right=facts["best_is_right"],
            known=facts["relevant"] > 0,
            group=group_Q,
            quality=np.concatenate(quality) if quality else None,
            metrics={
                name: values_Q if values_Q.dtype == bool else values_Q.astype(np.float32)
                for name, values_Q in metrics.items()
            },
        )

    def save(self, folder: Path) -> None:
        """Write queries.npz, including `correct` and `margin`; equal results give equal bytes."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "metrics"}
        arrays |= {"correct": self.correct, "margin": self.margin}
        arrays |= {_METRIC + name: values_Q for name, values_Q in self.metrics.items()}
        np.savez(folder / FILE, **{n: array for n, array in arrays.items() if array is not None})


def load_query_results(evaluation: Path) -> QueryResults:
    """Load the results of each query of an evaluation.

    Args:
        evaluation: Folder of an `evaluation` artifact.

    Raises:
        ArtifactError: The evaluation has no results of queries, or the file is damaged.
    """
    try:
        with np.load(evaluation / FILE, allow_pickle=False) as stored:
            arrays: dict[str, Any] = dict.fromkeys(_OPTIONAL) | dict(stored)
        facts = {f.name: arrays[f.name] for f in fields(QueryResults) if f.name != "metrics"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as cause:
        raise ArtifactError(
            f"the results of the queries cannot be read: {cause}",
            where=evaluation / FILE,
            remedy="evaluate the run again: `arcloop evaluate`",
        ) from None
    return QueryResults(
        **facts,
        metrics={
            name.removeprefix(_METRIC): values_Q
            for name, values_Q in arrays.items()
            if name.startswith(_METRIC)
        },
    )

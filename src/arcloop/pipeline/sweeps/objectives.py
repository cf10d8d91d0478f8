"""The objectives of a search: the values of a job, and their summary over the seeds of a trial."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.config.monitors import VAL_METRICS
from arcloop.errors import ConfigError
from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.results import read_job

_TIMING = ".timing.json"  # not in the manifest, because times differ between equal runs


@dataclass(frozen=True)
class Objective:
    """One of several objectives.

    Attributes:
        name: A metric of val, or a key of `MEASURED`.
        direction: "max" or "min".
    """

    name: str
    direction: str


def read_objectives(given: Sequence[Any] | None) -> tuple[Objective, ...]:
    """Return the objectives of `sweep.objectives`; empty if there is only `monitor`.

    Args:
        given: Names of objectives; `{name: min}` sets the direction, if it is not known or should
            be another one.

    >>> [one.direction for one in read_objectives(["val_top1", "index_bytes", {"val_x": "min"}])]
    ['max', 'min', 'min']

    Raises:
        ConfigError: A name is unknown, or there is only one.
    """
    known = {**VAL_METRICS, **{name: direction for name, (direction, _) in MEASURED.items()}}
    found: dict[str, str] = {}
    for entry in given or ():
        pairs = list(entry.items()) if isinstance(entry, Mapping) else [(entry, known.get(entry))]
        for name, direction in pairs:
            if direction not in ("max", "min") or not (name in known or name.startswith("val_")):
                raise ConfigError(
                    f"sweep.objectives: {name} is not known, or its direction is not max or min",
                    remedy=f"choose from {', '.join(known)}; for another metric that is logged on"
                    " val give the direction: {val_x: min}",
                )
            found[name] = direction
    if len(found) == 1:
        raise ConfigError(
            f"sweep.objectives={list(found)} contains one objective",
            remedy="list at least two, or set monitor=, the objective of a search without it",
        )
    return tuple(Objective(name, direction) for name, direction in found.items())


def require_measured(
    objectives: Sequence[Objective], verb: str, callbacks: Mapping[str, Any]
) -> None:
    """Check that the jobs measure the objectives.

    Args:
        objectives: The objectives.
        verb: Verb of the jobs.
        callbacks: The config of the callbacks, which write the artifacts after the training.

    Raises:
        ConfigError: A job would not write the artifact on which an objective is measured.
    """
    for objective in objectives:
        _, needed = MEASURED.get(objective.name, ("", None))
        if needed is not None and verb != "run" and callbacks.get(needed) is None:
            raise ConfigError(
                f"sweep.objectives: {objective.name} needs callbacks.{needed}, which is null",
                remedy="use callbacks=default, or `arcloop run`",
            )


def measure(run_dir: Path, objectives: Sequence[Objective]) -> dict[str, tuple[str, float]]:
    """Return name -> direction and value of the objectives of a finished run.

    Args:
        run_dir: The run.
        objectives: The objectives.

    Raises:
        ConfigError: The run does not record one of them.
    """
    if not objectives:
        return {}
    job = read_job(run_dir)
    of_val = job.val if job else {}
    values: dict[str, tuple[str, float]] = {}
    for objective in objectives:
        reader = _READERS.get(objective.name)
        value = of_val.get(objective.name)
        if reader is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                value = reader(run_dir)
        if value is None:
            raise ConfigError(
                f"the run does not record {objective.name}, which is in sweep.objectives",
                where=run_dir,
                remedy="use logger=default, whose metrics.csv has the metrics of val, and"
                " callbacks=default, which build and evaluate the index",
            )
        values[objective.name] = (objective.direction, float(value))
    return values


def summarize(values: Sequence[float], how: str, direction: str) -> float:
    """Return the objective of a trial from the values of its seeds.

    Args:
        values: One value per seed.
        how: "mean", or "lower": the worse end of the 95% confidence interval of the mean
            (Student's t), the lower one if the objective is maximised.
        direction: "max" or "min".

    >>> summarize([0.5, 1.0], "mean", "max")
    0.75
    >>> round(summarize([0.97, 0.98, 0.99], "lower", "max"), 4)
    0.9552
    """
    estimate = Estimate.of(values)
    if how == "mean" or estimate.half_width is None:
        return estimate.mean
    sign = -1 if direction == "max" else 1
    return estimate.mean + sign * estimate.half_width


def _count_parameters(run_dir: Path) -> int:
    import torch

    model = torch.jit.load(run_dir / "model.pt", map_location="cpu")  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in model.parameters())


def _read_timing(run_dir: Path, artifact: str, key: str) -> float:
    return float(json.loads((run_dir / artifact / _TIMING).read_bytes())[key])


MEASURED: Mapping[str, tuple[str, str | None]] = {
    "model_bytes": ("min", None),
    "parameters": ("min", None),
    "index_bytes": ("min", "build_index"),
    "images_per_second": ("max", "build_index"),
    "search_p50_ms": ("min", "evaluate"),
    "search_p99_ms": ("min", "evaluate"),
}
"""Name -> direction, and the callback that writes the artifact on which it is measured. The last
three are speeds, which are not comparable if other jobs run at the same time."""
_READERS: Mapping[str, Callable[[Path], float]] = {
    "model_bytes": lambda run: (run / "model.pt").stat().st_size,
    "parameters": _count_parameters,
    "index_bytes": lambda run: artifacts.read(run / "index", "index").info["bytes"],
    "images_per_second": lambda run: _read_timing(run, "gallery", "per_second"),
    "search_p50_ms": lambda run: _read_timing(run, "evaluation", "search_p50_ms"),
    "search_p99_ms": lambda run: _read_timing(run, "evaluation", "search_p99_ms"),
}

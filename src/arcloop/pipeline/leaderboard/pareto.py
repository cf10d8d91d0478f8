"""The trade-off of a search with several objectives: which settings are Pareto-optimal, and a plot.

A setting is Pareto-optimal if no other one is better in one objective and worse in none.

Shapes: N settings, M objectives.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from arcloop.display.plotting import INK, RIGHT, WIDTH, figure, styled

_MAX_LABELS = 12
_LOGARITHMIC = 20  # ratio of the largest to the smallest value

Objectives = Mapping[str, tuple[str, float]]
"""Name -> direction ("max" or "min") and value, as in the record of a job."""


@dataclass(frozen=True)
class Tradeoff:
    """Objectives of the settings of a sweep.

    Attributes:
        directions: Name of each objective -> "max" or "min".
        places: Position in the ranking of each setting that has all objectives.
        values: [N, M], mean over the seeds of each of these settings.
        is_optimal: [N], whether the setting is Pareto-optimal.
    """

    directions: Mapping[str, str]
    places: Sequence[int]
    values: npt.NDArray[np.float64]
    is_optimal: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, settings: Sequence[Sequence[Objectives]]) -> Tradeoff | None:
        """Return the trade-off; None without a setting that has several objectives.

        Args:
            settings: For each setting, the objectives of its finished jobs.
        """
        first = next((job for jobs in settings for job in jobs if job), {})
        directions = {name: direction for name, (direction, _) in first.items()}
        rows = {
            place: [statistics.fmean(job[name][1] for job in jobs) for name in directions]
            for place, jobs in enumerate(settings)
            if jobs and all(directions.keys() <= job.keys() for job in jobs)
        }
        if not directions or not rows:
            return None
        values_NM = np.array(list(rows.values()))
        optimal_N = pareto_optimal(values_NM, list(directions.values()))
        return cls(directions, list(rows), values_NM, optimal_N)

    def optimal(self) -> list[tuple[int, dict[str, float]]]:
        """Return position and objectives of Pareto-optimal settings, by the first objective."""
        first = next(iter(self.directions.values()))
        found = np.flatnonzero(self.is_optimal)
        order = found[np.argsort(self.values[found, 0], kind="stable")]
        names = list(self.directions)
        return [
            (self.places[row], dict(zip(names, self.values[row].tolist(), strict=True)))
            for row in (order[::-1] if first == "max" else order).tolist()
        ]


def pareto_optimal(
    values_NM: npt.NDArray[np.float64], directions: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Return which rows are Pareto-optimal; of equal rows, all or none are.

    Args:
        values_NM: Objectives of each setting.
        directions: "max" or "min" of each objective.

    Returns:
        bool [N].

    >>> pareto_optimal(np.array([[0.9, 10], [0.8, 5], [0.7, 6]]), ["max", "min"]).tolist()
    [True, True, False]
    """
    costs_NM = values_NM * [-1 if direction == "max" else 1 for direction in directions]
    return np.array([
        not ((costs_NM <= row_M).all(1) & (costs_NM < row_M).any(1)).any() for row_M in costs_NM
    ])  # fmt: skip


@styled
def draw_pareto(tradeoff: Tradeoff, names: Sequence[str]) -> Figure:
    """Draw the first objective over each of the others.

    Args:
        tradeoff: The objectives of the settings.
        names: Label of each setting of the ranking; those of Pareto-optimal ones are drawn.
    """
    y, *others = tradeoff.directions
    columns = len(others)
    drawn, axes = figure(
        columns, width=max(2, columns) * WIDTH, height=4.2, margins=(0.75, 0.25, 0.55, 0.2)
    )
    optimal_N, y_N = tradeoff.is_optimal, tradeoff.values[:, 0]
    for column, (axis, name) in enumerate(zip(axes, others, strict=True), start=1):
        x_N = tradeoff.values[:, column]
        axis.plot(x_N[~optimal_N], y_N[~optimal_N], "o", color=INK, alpha=0.5, markersize=4.5)
        if columns == 1:
            front = np.flatnonzero(optimal_N)[np.argsort(x_N[optimal_N], kind="stable")]
            side: Any = "post" if tradeoff.directions[name] == "min" else "pre"
            axis.step(x_N[front], y_N[front], where=side, color=RIGHT, linewidth=1, alpha=0.6)
        axis.plot(x_N[optimal_N], y_N[optimal_N], "o", color=RIGHT, markersize=6.5)
        for row in np.flatnonzero(optimal_N)[:_MAX_LABELS].tolist():
            name_at: Any = (5, 4)
            axis.annotate(
                names[tradeoff.places[row]], (x_N[row], y_N[row]), xytext=name_at,
                textcoords="offset points", fontsize="small", color=RIGHT,
            )  # fmt: skip
        if x_N.min() > 0 and x_N.max() / x_N.min() >= _LOGARITHMIC:
            axis.set_xscale("log")
        directions = tradeoff.directions
        axis.set(xlabel=_label(name, directions[name]), ylabel=_label(y, directions[y]))
    return drawn


def _label(name: str, direction: str) -> str:
    return f"{name} ({'larger' if direction == 'max' else 'smaller'} is better)"

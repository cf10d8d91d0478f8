"""Heat map and parallel coordinates over the values that a sweep varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from arcloop.display.plotting import INK, RIGHT, WIDTH, WRONG, figure, short_name, styled
from arcloop.pipeline.leaderboard.settings import Setting, as_number, short_key, short_value

_MAX_CELLS = 14
_MIN_FILLED = 0.6
_WORSE_TO_BETTER = LinearSegmentedColormap.from_list("worse to better", [WRONG, "#b9b6b4", RIGHT])


@dataclass(frozen=True)
class Objective:
    """The metric that ranks settings.

    Attributes:
        name: Name of the metric.
        higher_is_better: Direction of the ranking.
    """

    name: str
    higher_is_better: bool

    def colours(self, scores: npt.NDArray[np.float64]) -> ScalarMappable:
        """Return a colour scale for scores; outliers among the worst scores are clipped."""
        if self.higher_is_better:
            low, quarter, high = np.quantile(scores, [0, 0.25, 1])
            low = max(low, quarter - 2 * (high - quarter))
        else:
            low, quarter, high = np.quantile(scores, [0, 0.75, 1])
            high = min(high, quarter + 2 * (quarter - low))
        scale = _WORSE_TO_BETTER if self.higher_is_better else _WORSE_TO_BETTER.reversed()
        return ScalarMappable(Normalize(low, high if high > low else low + 1e-9), scale)


@styled
def heat_map(x: str, y: str, settings: Sequence[Setting], objective: Objective) -> Figure:
    """Draw the objective over two keys: cells if the values form a grid, otherwise points.

    Args:
        x: Key of the horizontal axis.
        y: Key of the vertical axis.
        settings: Settings, best first; settings that share both values are averaged.
        objective: The metric that ranks them.
    """
    xs, ys = numbers(x, settings), numbers(y, settings)
    scores = _scores(settings)
    drawn, (axis,) = figure(width=WIDTH, height=4.4, margins=(0.75, 1.05, 0.55, 0.2))
    columns, rows = np.unique(xs), np.unique(ys)
    colours = objective.colours(scores)
    filled = len({*zip(xs.tolist(), ys.tolist(), strict=True)}) / (len(columns) * len(rows))
    if max(len(columns), len(rows)) <= _MAX_CELLS and filled >= _MIN_FILLED:
        cells = np.full((len(rows), len(columns)), np.nan)
        for row, column in np.ndindex(cells.shape):
            here = scores[(xs == columns[column]) & (ys == rows[row])]
            if len(here):
                cells[row, column] = here.mean()
                axis.text(
                    column, row, f"{here.mean():.3f}", ha="center", va="center", color="white",
                    fontsize="small", weight="bold",
                )  # fmt: skip
        low, high = colours.get_clim()
        axis.imshow(cells, cmap=colours.cmap, vmin=low, vmax=high, origin="lower", aspect="auto")
        axis.set_xticks(np.arange(len(columns)), [f"{value:g}" for value in columns])
        axis.set_yticks(np.arange(len(rows)), [f"{value:g}" for value in rows])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    else:
        axis.scatter(xs, ys, color=colours.to_rgba(scores), s=60, linewidths=0)
        axis.plot(xs[0], ys[0], "o", markersize=13, fillstyle="none", color=RIGHT)
        for values, change in ((xs, axis.set_xscale), (ys, axis.set_yscale)):
            if is_logarithmic(values):
                change("log")
    axis.set(xlabel=x, ylabel=y)
    _colour_bar(drawn, colours, objective.name, 4.4)
    return drawn


@styled
def parallel(keys: Sequence[str], settings: Sequence[Setting], objective: Objective) -> Figure:
    """Draw each setting as a line through its values to its objective (parallel coordinates).

    Args:
        keys: Varied keys, one axis each.
        settings: Settings, best first; the best is drawn on top.
        objective: The metric that ranks them; the last axis.
    """
    height = 3.8
    drawn, (axis,) = figure(width=2 * WIDTH, height=height, margins=(0.9, 1.3, 0.5, 0.25))
    scores = _scores(settings)
    colours = objective.colours(scores)
    columns = []
    for place, key in enumerate(keys):
        texts = [setting.values[key] for setting in settings]
        heights, ticks = _axis(texts)
        columns.append(heights)
        for at, text in ticks:
            axis.text(
                place, at, short_name(text), ha="center", va="center", fontsize="small",
                color="white", zorder=5,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": INK, "linewidth": 0},
            )  # fmt: skip
        axis.axvline(place, color=INK, linewidth=0.8, alpha=0.6)
    span = float(np.ptp(scores)) or 1.0
    columns.append((scores - scores.min()) / span)
    axis.axvline(len(keys), color=INK, linewidth=0.8, alpha=0.6)
    for at in np.linspace(0, 1, 5):
        text = f"{scores.min() + at * span:.4f}"
        axis.text(len(keys) + 0.02, at, text, ha="left", va="center", fontsize="small")
    for number in range(len(settings) - 1, -1, -1):
        axis.plot(
            [column[number] for column in columns],
            color=colours.to_rgba(scores[number]),
            alpha=1.0 if number == 0 else 0.55,
            linewidth=2.6 if number == 0 else 1.3,
        )
    axis.set(xlim=(0, len(keys)), ylim=(-0.05, 1.05))
    axis.set_xticks(range(len(keys) + 1), [*map(short_key, keys), objective.name])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    _colour_bar(drawn, colours, objective.name, height)
    return drawn


def _axis(texts: Sequence[str | None]) -> tuple[npt.NDArray[Any], list[tuple[float, str]]]:
    """Return the position of each value in [0, 1], and the ticks; texts are spaced evenly."""
    numbers = [as_number(text) for text in texts]
    if all(number is not None for number in numbers):
        values = np.array(numbers, dtype=float)
        log = is_logarithmic(values)
        scaled = np.log(values) if log else values
        low, span = scaled.min(), float(np.ptp(scaled)) or 1.0
        distinct = np.unique(values)
        if len(distinct) > 8:
            marks = low + span * np.linspace(0, 1, 5)
            distinct = np.exp(marks) if log else marks
        marks = np.log(distinct) if log else distinct
        ticks = [
            (float((m - low) / span), f"{v:.3g}") for m, v in zip(marks, distinct, strict=True)
        ]
        return (scaled - low) / span, ticks
    names = list(dict.fromkeys(short_value(text) for text in texts))
    places = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
    heights = np.array([places[names.index(short_value(text))] for text in texts])
    return heights, list(zip(places.tolist(), names, strict=True))


def numbers(key: str, settings: Sequence[Setting]) -> npt.NDArray[np.float64]:
    """Return the values of a key, which must all be numbers."""
    return np.array([as_number(setting.values[key]) for setting in settings], dtype=np.float64)


def _scores(settings: Sequence[Setting]) -> npt.NDArray[np.float64]:
    return np.array([s.objective.mean for s in settings if s.objective is not None])


def is_logarithmic(values: npt.NDArray[np.float64]) -> bool:
    """Return whether values span a ratio of at least 8, as learning rates or scales do."""
    return bool(values.min() > 0 and values.max() / values.min() >= 8)


def _colour_bar(drawn: Figure, colours: ScalarMappable, label: str, height: float) -> None:
    width = float(drawn.get_size_inches()[0])
    place = drawn.add_axes((1 - 0.62 / width, 0.55 / height, 0.1 / width, 1 - 0.75 / height))
    bar = drawn.colorbar(colours, cax=place)
    bar.outline.set_visible(False)
    bar.ax.set_title(label, fontsize="small", weight="normal", loc="center")

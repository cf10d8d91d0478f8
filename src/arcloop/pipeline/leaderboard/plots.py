"""Figures of a sweep: take a ranking and return matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from arcloop.display.plotting import (
    INK,
    RIGHT,
    WIDTH,
    WRONG,
    figure,
    name_margin,
    short_name,
    styled,
)
from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.pareto import draw_pareto
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.results import as_number

_MAX_SETTINGS = 15
_MAX_NAME_LENGTH = 34  # characters of a setting's name
_MAX_CELLS, _MIN_FILLED = 14, 0.6  # of a heat map; otherwise points are drawn
_MIN_SPAN = 5e-4  # values closer than this are drawn as equal; labels have four decimals
_PREFERRED = ("head.margin", "head.scale")
_WORSE_TO_BETTER = LinearSegmentedColormap.from_list("worse to better", [WRONG, "#b9b6b4", RIGHT])

_Array = npt.NDArray[np.float64]


def short_key(key: str) -> str:
    """Return the last part of a key.

    >>> short_key("head.margin")
    'margin'
    """
    return key.rpartition(".")[2]


def short_value(value: str | None) -> str:
    """Return a value short enough for a table.

    >>> short_value("0.47491026375865764"), short_value("arcface"), short_value(None)
    ('0.4749', 'arcface', '-')
    """
    if value is None:
        return "-"
    number = as_number(value)
    return value if number is None or len(value) <= 6 else f"{number:.4g}"


def draw(ranking: Ranking) -> dict[str, Figure]:
    """Return the figures that apply to a sweep, by name."""
    # Settings without an objective are last. They are not drawn.
    estimates = [s.objective for s in ranking.settings if s.objective is not None]
    if len(estimates) < 2:
        return {}
    settings = ranking.settings[: len(estimates)]
    texts = {key: [setting.values[key] for setting in settings] for key in ranking.keys}
    numeric = {
        key: np.array([as_number(value) for value in values], dtype=np.float64)
        for key, values in texts.items()
        if len(set(values)) > 1 and all(as_number(value) is not None for value in values)
    }
    name = ranking.monitor
    figures = {"settings": _compare_settings(ranking, estimates)}
    if ranking.tradeoff is not None:
        figures["pareto"] = draw_pareto(ranking.tradeoff, ranking.ranks)
    if len(texts) == 1 and numeric:
        figures["curve"] = _curve(*numeric.popitem(), estimates, name)
    scores = np.array([estimate.mean for estimate in estimates])
    colours = _colour_scale(scores, higher_is_better=ranking.higher_is_better)
    if len(numeric) >= 2:
        x, y = sorted(numeric, key=lambda key: key not in _PREFERRED)[:2]
        figures["heat_map"] = _heat_map({x: numeric[x], y: numeric[y]}, scores, colours, name)
    if len(texts) >= 2:
        figures["parallel"] = _parallel(texts, numeric, scores, colours, name)
    return figures


def _colour_scale(scores: _Array, *, higher_is_better: bool) -> ScalarMappable:
    """Return a colour scale for scores; outliers among the worst scores are clipped."""
    low, quarter, high = np.quantile(scores, [0, 0.25 if higher_is_better else 0.75, 1])
    if higher_is_better:
        low = max(low, quarter - 2 * (high - quarter))
    else:
        high = min(high, quarter + 2 * (quarter - low))
    colours = _WORSE_TO_BETTER if higher_is_better else _WORSE_TO_BETTER.reversed()
    if high - low < _MIN_SPAN:
        low, high = _limits([low, high])
    return ScalarMappable(Normalize(low, high), colours)


def _limits(values: Sequence[float], margin: float = 0.25) -> tuple[float, float]:
    """Return the limits of an axis; if all values are equal, they are in its centre.

    Args:
        values: The values to show.
        margin: Space at each end, as a fraction of the range of the values.
    """
    low, high = min(values), max(values)
    if high - low < _MIN_SPAN:
        centre = (low + high) / 2
        return centre - 10 * _MIN_SPAN, centre + 10 * _MIN_SPAN
    return low - margin * (high - low), high + margin * (high - low)


@styled
def _compare_settings(ranking: Ranking, objectives: Sequence[Estimate]) -> Figure:
    """Draw objective and query top-1 of the best settings: mean, interval and single seeds."""
    settings = ranking.settings[: min(len(objectives), _MAX_SETTINGS)]
    names = [
        short_name(" · ".join(map(short_value, s.values.values())), _MAX_NAME_LENGTH)
        for s in settings
    ]
    panels: list[tuple[str, str, Sequence[Estimate | None]]] = [
        (f"{ranking.monitor} (ranking)", RIGHT, objectives[: len(settings)])
    ]
    if any("top1" in setting.metrics for setting in settings):
        panels.append(("top1 on query", INK, [setting.metrics.get("top1") for setting in settings]))
    height = max(0.7 + 0.27 * len(settings), 2.2)
    margins = (name_margin(names, _MAX_NAME_LENGTH), 0.25, 0.35, 0.32)
    drawn, axes = figure(len(panels), width=2 * WIDTH, height=height, margins=margins)
    for axis, (title, colour, estimates) in zip(axes, panels, strict=True):
        for place, estimate in enumerate(estimates):
            if estimate is not None:
                seeds = [place + 0.3] * len(estimate.values) if len(estimate.values) > 1 else []
                _draw_seeds(axis, estimate.values[: len(seeds)], seeds, colour)
                _draw_mean(axis, (estimate.mean, place), colour, xerr=estimate.half_width)
        # Limit the axis to the values of the seeds; intervals of few seeds may be much wider.
        values = [value for estimate in estimates if estimate for value in estimate.values]
        axis.set_xlim(*_limits(values))
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.set(title=title, ylim=(len(settings) - 0.4, -0.6))
        axis.set_yticks(np.arange(len(settings)), names)
        axis.grid(visible=False, axis="y")
    return drawn


@styled
def _curve(key: str, x: _Array, estimates: Sequence[Estimate], name: str) -> Figure:
    """Draw the objective over the only varied key."""
    drawn, (axis,) = figure(width=2 * WIDTH, height=3.2)
    order = np.argsort(x)
    axis.plot(x[order], [estimates[place].mean for place in order], color=RIGHT)
    for value, estimate in zip(x.tolist(), estimates, strict=True):
        _draw_seeds(axis, [value] * len(estimate.values), estimate.values, RIGHT)
        _draw_mean(axis, (value, estimate.mean), RIGHT, yerr=estimate.half_width)
    if _is_logarithmic(x):
        axis.set_xscale("log")
    axis.set_ylim(*_limits([value for estimate in estimates for value in estimate.values]))
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.set(xlabel=key, ylabel=name)
    return drawn


def _draw_seeds(axis: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    axis.plot(x, y, "o", color=colour, alpha=0.4, markersize=3.5, markeredgewidth=0)


def _draw_mean(axis: Axes, at: tuple[float, float], colour: str, **interval: Any) -> None:
    axis.errorbar(*at, **interval, fmt="o", color=colour, markersize=5, elinewidth=1.4, capsize=2.5)


@styled
def _heat_map(
    values: dict[str, _Array], scores: _Array, colours: ScalarMappable, name: str
) -> Figure:
    """Draw the objective over two keys: cells if the values form a grid, otherwise points."""
    xs, ys = values.values()
    drawn, (axis,) = figure(width=WIDTH, height=4.4, margins=(0.75, 0.2, 0.55, 0.35))
    columns, rows = np.unique(xs), np.unique(ys)
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
        for along, change in ((xs, axis.set_xscale), (ys, axis.set_yscale)):
            if _is_logarithmic(along):
                change("log")
    x, y = values
    axis.set(xlabel=x, ylabel=y, title=name)
    bar: Any = drawn.colorbar(colours, ax=axis)
    bar.outline.set_visible(False)
    return drawn


@styled
def _parallel(
    texts: dict[str, list[str | None]],
    numeric: dict[str, _Array],
    scores: _Array,
    colours: ScalarMappable,
    name: str,
) -> Figure:
    """Draw each setting as a line through its values to its objective (parallel coordinates)."""
    drawn, (axis,) = figure(width=2 * WIDTH, height=3.8, margins=(0.9, 0.7, 0.5, 0.25))
    columns = []
    for place, (key, values) in enumerate(texts.items()):
        heights, ticks = _axis(numeric[key] if key in numeric else [*map(short_value, values)])
        columns.append(heights)
        for at, text in ticks:
            axis.text(
                place, at, short_name(text), ha="center", va="center", fontsize="small",
                color="white", zorder=5,
                bbox={"boxstyle": "round,pad=0.25", "facecolor": INK, "linewidth": 0},
            )  # fmt: skip
        axis.axvline(place, color=INK, linewidth=0.8, alpha=0.6)
    low, high = _limits(scores.tolist(), margin=0.0)
    columns.append((scores - low) / (high - low))
    axis.axvline(len(texts), color=INK, linewidth=0.8, alpha=0.6)
    for at in np.linspace(0, 1, 5):
        score = f"{low + at * (high - low):.4f}"
        axis.text(len(texts) + 0.02, at, score, ha="left", va="center", fontsize="small")
    for number in reversed(range(len(scores))):  # the best is drawn on top
        best = number == 0
        axis.plot(
            [column[number] for column in columns],
            color=colours.to_rgba(scores[number]),
            alpha=1.0 if best else 0.55,
            linewidth=2.6 if best else 1.3,
        )
    axis.set(xlim=(0, len(texts)), ylim=(-0.05, 1.05))
    axis.set_xticks(range(len(texts) + 1), [*map(short_key, texts), name])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return drawn


def _axis(values: _Array | list[str]) -> tuple[_Array, list[tuple[float, str]]]:
    """Return the position of each value in [0, 1], and the ticks; strings are spaced evenly."""
    if isinstance(values, list):
        names, numbers = np.unique(values, return_inverse=True)
        heights = (numbers + 0.5) / len(names)
        return heights, [((number + 0.5) / len(names), str(n)) for number, n in enumerate(names)]
    log = _is_logarithmic(values)
    scaled = np.log(values) if log else values
    low, span = scaled.min(), np.ptp(scaled) or 1.0
    marks = np.unique(scaled)
    if len(marks) > 8:
        marks = low + span * np.linspace(0, 1, 5)
    ticks = [((m - low) / span, f"{np.exp(m) if log else m:.3g}") for m in marks.tolist()]
    return (scaled - low) / span, ticks


def _is_logarithmic(values: _Array) -> bool:
    """Return whether values span a ratio of at least 8, as learning rates or scales do."""
    return bool(values.min() > 0 and values.max() / values.min() >= 8)

"""Figures of a sweep: settings in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcloop.display.plotting import INK, RIGHT, WIDTH, figure, name_margin, short_name, styled
from arcloop.pipeline.leaderboard.settings import Estimate, Setting, as_number, shown
from arcloop.pipeline.leaderboard.value_plots import (
    Objective,
    heat_map,
    is_logarithmic,
    numbers,
    parallel,
)

_MOST_SETTINGS = 15
_LONGEST = 34  # characters of a setting's name
_PREFERRED = ("head.margin", "head.scale")


def draw(
    keys: Sequence[str], settings: Sequence[Setting], objective: Objective
) -> dict[str, Figure]:
    """Return the figures that make sense for a sweep, by name.

    Args:
        keys: What varies, seeds apart.
        settings: The best first.
        objective: What they are ranked by.
    """
    scored = [setting for setting in settings if setting.objective is not None]
    if len(scored) < 2:
        return {}
    numeric = [key for key in keys if _is_numeric(key, scored)]
    figures = {"settings": compared(scored, objective)}
    if len(keys) == 1 and numeric:
        figures["curve"] = curve(numeric[0], scored, objective)
    if len(numeric) >= 2:
        x, y = sorted(numeric, key=lambda key: key not in _PREFERRED)[:2]
        figures["heat_map"] = heat_map(x, y, scored, objective)
    if len(keys) >= 2:
        figures["parallel"] = parallel(keys, scored, objective)
    return figures


def _is_numeric(key: str, settings: Sequence[Setting]) -> bool:
    values = {setting.values[key] for setting in settings}
    return len(values) > 1 and all(as_number(value) is not None for value in values)


@styled
def compared(settings: Sequence[Setting], objective: Objective) -> Figure:
    """Draw each setting's objective, and top-1 of query: mean, interval, and each seed.

    Args:
        settings: The best first; of many, the best are drawn.
        objective: What they are ranked by.
    """
    settings = settings[:_MOST_SETTINGS]
    names = [short_name(" · ".join(map(shown, s.values.values())), _LONGEST) for s in settings]
    with_query = any("top1" in setting.metrics for setting in settings)
    height = 0.7 + 0.27 * len(settings)
    margins = (name_margin(names, _LONGEST), 0.25, 0.35, 0.32)
    drawn, axes = figure(1 + with_query, width=2 * WIDTH, height=max(height, 2.2), margins=margins)
    places = np.arange(len(settings))
    panels: list[tuple[str, str, list[Estimate | None]]] = [
        (f"{objective.name}, which ranks", RIGHT, [setting.objective for setting in settings])
    ]
    if with_query:
        panels.append(("top1 of query", INK, [setting.metrics.get("top1") for setting in settings]))
    for axis, (title, colour, estimates) in zip(axes, panels, strict=True):
        for place, estimate in zip(places.tolist(), estimates, strict=True):
            if estimate is None:
                continue
            if len(estimate.values) > 1:
                axis.plot(
                estimate.values, [place + 0.3] * len(estimate.values), "o",
                color=colour, alpha=0.45, markersize=3.5, markeredgewidth=0,
            )  # fmt: skip
            _whisker(axis, (estimate.mean, place), xerr=estimate.half_width, colour=colour)
        _fit(axis, [v for e in estimates if e for v in e.values])
        axis.set(title=title, ylim=(len(settings) - 0.4, -0.6))
        axis.set_yticks(places, names)
        axis.grid(visible=False, axis="y")
    return drawn


@styled
def curve(key: str, settings: Sequence[Setting], objective: Objective) -> Figure:
    """Draw the objective over the one value that varies.

    Args:
        key: Its name; its values are numbers.
        settings: In any order.
        objective: What they are ranked by.
    """
    drawn, (axis,) = figure(width=2 * WIDTH, height=3.2)
    points = sorted(zip(numbers(key, settings), settings, strict=True), key=lambda pair: pair[0])
    x = np.array([value for value, _ in points])
    estimates = [setting.objective for _, setting in points if setting.objective is not None]
    axis.plot(x, [estimate.mean for estimate in estimates], color=RIGHT)
    for value, estimate in zip(x.tolist(), estimates, strict=True):
        axis.plot(
            [value] * len(estimate.values), estimate.values, "o",
            color=RIGHT, alpha=0.35, markersize=4, markeredgewidth=0,
        )  # fmt: skip
        _whisker(axis, (value, estimate.mean), yerr=estimate.half_width, colour=RIGHT)
    if is_logarithmic(x):
        axis.set_xscale("log")
    axis.set(xlabel=key, ylabel=objective.name)
    return drawn


def _whisker(
    axis: Axes,
    at: tuple[float, float],
    *,
    colour: str,
    xerr: float | None = None,
    yerr: float | None = None,
) -> None:
    axis.errorbar(
        *at, xerr=xerr, yerr=yerr, fmt="o", color=colour, markersize=5, elinewidth=1.4, capsize=2.5
    )


def _fit(axis: Axes, values: Sequence[float]) -> None:
    """Show all means and seeds; the interval of few seeds may be wider than any of them."""
    span = (max(values) - min(values)) or 0.01
    axis.set_xlim(min(values) - 0.25 * span, max(values) + 0.25 * span)

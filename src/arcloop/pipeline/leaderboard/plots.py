"""Figures of a sweep: take settings and return matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from arcloop.display.plotting import INK, RIGHT, WIDTH, figure, name_margin, short_name, styled
from arcloop.pipeline.leaderboard.settings import Estimate, Setting, as_number, short_value
from arcloop.pipeline.leaderboard.value_plots import (
    Objective,
    heat_map,
    is_logarithmic,
    numbers,
    parallel,
)

_MAX_SETTINGS = 15
_MAX_NAME_LENGTH = 34  # characters of a setting's name
_PREFERRED = ("head.margin", "head.scale")


def draw(
    keys: Sequence[str], settings: Sequence[Setting], objective: Objective
) -> dict[str, Figure]:
    """Return the figures that apply to a sweep, by name.

    Args:
        keys: Varied keys, without the seed.
        settings: Settings, best first.
        objective: The metric that ranks them.
    """
    scored = [setting for setting in settings if setting.objective is not None]
    if len(scored) < 2:
        return {}
    numeric = [key for key in keys if _is_numeric(key, scored)]
    figures = {"settings": compare_settings(scored, objective)}
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
def compare_settings(settings: Sequence[Setting], objective: Objective) -> Figure:
    """Draw objective and query top-1 of each setting: mean, interval and single seeds.

    Args:
        settings: Settings, best first; only the best are drawn if there are many.
        objective: The metric that ranks them.
    """
    settings = settings[:_MAX_SETTINGS]
    names = [
        short_name(" · ".join(map(short_value, s.values.values())), _MAX_NAME_LENGTH)
        for s in settings
    ]
    with_query = any("top1" in setting.metrics for setting in settings)
    height = 0.7 + 0.27 * len(settings)
    margins = (name_margin(names, _MAX_NAME_LENGTH), 0.25, 0.35, 0.32)
    drawn, axes = figure(1 + with_query, width=2 * WIDTH, height=max(height, 2.2), margins=margins)
    places = np.arange(len(settings))
    panels: list[tuple[str, str, list[Estimate | None]]] = [
        (f"{objective.name} (ranking)", RIGHT, [setting.objective for setting in settings])
    ]
    if with_query:
        panels.append(("top1 on query", INK, [setting.metrics.get("top1") for setting in settings]))
    for axis, (title, colour, estimates) in zip(axes, panels, strict=True):
        for place, estimate in zip(places.tolist(), estimates, strict=True):
            if estimate is None:
                continue
            if len(estimate.values) > 1:
                axis.plot(
                estimate.values, [place + 0.3] * len(estimate.values), "o",
                color=colour, alpha=0.45, markersize=3.5, markeredgewidth=0,
            )  # fmt: skip
            _draw_interval(axis, (estimate.mean, place), xerr=estimate.half_width, colour=colour)
        _limit_x(axis, [v for e in estimates if e for v in e.values])
        axis.set(title=title, ylim=(len(settings) - 0.4, -0.6))
        axis.set_yticks(places, names)
        axis.grid(visible=False, axis="y")
    return drawn


@styled
def curve(key: str, settings: Sequence[Setting], objective: Objective) -> Figure:
    """Draw the objective over the only varied key.

    Args:
        key: The key; its values are numbers.
        settings: Settings in any order.
        objective: The metric that ranks them.
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
        _draw_interval(axis, (value, estimate.mean), yerr=estimate.half_width, colour=RIGHT)
    if is_logarithmic(x):
        axis.set_xscale("log")
    axis.set(xlabel=key, ylabel=objective.name)
    return drawn


def _draw_interval(
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


def _limit_x(axis: Axes, values: Sequence[float]) -> None:
    """Limit the x axis to the values of the seeds; intervals of few seeds may be much wider."""
    span = (max(values) - min(values)) or 0.01
    axis.set_xlim(min(values) - 0.25 * span, max(values) + 0.25 * span)

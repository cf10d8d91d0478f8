"""The confusion matrix as a figure that shows mistakes, of two classes or of a thousand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgba
from matplotlib.figure import Figure

from arcloop.display.plotting import SQUARE, WRONG, figure, name_margin, short_name, styled

Ints = npt.NDArray[np.int64]

_MISTAKES = LinearSegmentedColormap.from_list("mistakes", ["#fbe1d2", WRONG])
_RIGHT, _DARK = "#cfe0fa", "#3a4250"
_MOST_NUMBERS = 16
_MOST_NAMES = 40
_MOST_CELLS = 200


@styled
def confusion_matrix(counts_SS: Ints, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: right answers pale, mistakes strong on a log scale.

    Up to 16 classes the counts are written in, up to 40 the names. Beyond 200 classes a cell stands
    for several and shows the largest count among them, so that a single mistake stays visible.

    Args:
        counts_SS: Rows true class, columns answered class.
        names: Names of the classes.
    """
    size = len(names)
    named = size <= _MOST_NAMES
    margin = name_margin(names) if named else 0.6
    drawn, (axis,) = figure(height=SQUARE, margins=(margin, 0.2, margin, 0.15))
    mistakes = counts_SS.copy()
    np.fill_diagonal(mistakes, 0)
    most = max(int(mistakes.max()), 1)
    pooled = _largest(mistakes, -(-size // _MOST_CELLS))
    axis.imshow(
        _colours(pooled, most),
        extent=(-0.5, size - 0.5, size - 0.5, -0.5),
        interpolation="nearest",
        aspect="auto",
    )
    if size <= _MOST_NUMBERS:
        _write_counts(axis, counts_SS, most)
    elif mistakes.any():
        bar = drawn.colorbar(ScalarMappable(LogNorm(1, most + 1), _MISTAKES), ax=axis, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("mistakes")
        bar.ax.minorticks_off()
        ticks = np.unique(np.geomspace(1, most, 4).astype(int)).tolist()
        bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    if named:
        short = [short_name(name) for name in names]
        axis.set_xticks(range(size), short, rotation=90 if max(map(len, short)) > 3 else 0)
        axis.set_yticks(range(size), short)
    axis.set(xlabel="answered", ylabel="true class")
    axis.grid(visible=False)
    return drawn


def _colours(mistakes: Ints, most: int) -> npt.NDArray[np.float64]:
    cells: npt.NDArray[np.float64] = _MISTAKES(np.log1p(mistakes) / np.log1p(most))
    cells[mistakes == 0, 3] = 0
    diagonal = np.arange(len(mistakes))
    free = diagonal[mistakes.diagonal() == 0]  # a pooled cell there may hold mistakes
    cells[free, free] = to_rgba(_RIGHT)
    return cells


def _write_counts(axis: Axes, counts_SS: Ints, most: int) -> None:
    for row, column in np.argwhere(counts_SS).tolist():
        count = counts_SS[row, column]
        strong = row != column and np.log1p(count) > 0.6 * np.log1p(most)
        axis.text(
            column,
            row,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize="small",
            color="white" if strong else _DARK,
        )


def _largest(counts_SS: Ints, cell: int) -> Ints:
    """The largest count in each square of `cell` x `cell` classes."""
    padding = -len(counts_SS) % cell
    padded = np.pad(counts_SS, (0, padding))
    size = len(padded) // cell
    return np.asarray(padded.reshape(size, cell, size, cell).max(axis=(1, 3)))

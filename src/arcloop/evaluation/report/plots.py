"""Figures of an evaluation: functions from arrays to a matplotlib Figure, without pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arcloop.display.plotting import (
    INK,
    RIGHT,
    SQUARE,
    WIDTH,
    WRONG,
    figure,
    name_margin,
    short_name,
    styled,
)
from arcloop.display.terminal import format_similarity
from arcloop.evaluation.metrics.verification import Roc, least_similarities
from arcloop.evaluation.report.class_table import worst_classes

Ints = npt.NDArray[np.int64]

MAX_BARS = 40
_LEAST_ERROR, _LINES = 1e-4, ("-", "--", ":", "-.")
_ERROR_TICKS = [digit * 10.0**power for power in range(-6, 0) for digit in (1, 2, 5)] + [1.0]
_MAX_REJECTED, _MAX_POINTS = 0.5, 1000
_MISTAKE_COLOURS = LinearSegmentedColormap.from_list("mistakes", ["#fbe1d2", WRONG])
_DIAGONAL, _DARK = "#cfe0fa", "#3a4250"
_MAX_NUMBERED_CLASSES, _MAX_NAMED_CLASSES, _MAX_CELLS = 16, 40, 200


@styled
def training_curves(curves: Sequence[dict[str, float]]) -> Figure | None:
    """Draw loss, validation errors and learning rates over training steps.

    The error of a metric in [0, 1] is 1 - its value. The axis is logarithmic, and an error below
    1e-4 is drawn at 1e-4.

    Args:
        curves: Rows of metrics.csv: "step" and the values logged at that step.

    Returns:
        None if nothing was logged.
    """
    columns = sorted({name for row in curves for name in row} - {"step", "epoch"})
    if not columns:
        return None
    drawn, axes = figure(3, width=2 * WIDTH, height=2.9, margins=(0.6, 0.2, 0.5, 0.32))
    panels = (("loss", "_loss", WRONG), ("validation error", "val_", RIGHT),
              ("learning rate", "lr", INK))  # fmt: skip
    for axis, (title, key, colour) in zip(axes, panels, strict=True):
        axis.set(title=title, xlabel="step")
        layers = [name for name in columns if "/backbone_" in name][
            1:-1
        ]  # draws the first and last only
        hidden = {"val_margin", *layers}
        names = [name for name in columns if key in name and name not in hidden]
        for number, name in enumerate(names):
            logged = [(row["step"], row[name]) for row in curves if name in row]
            steps, values = np.array(logged).T
            label = name
            if key == "val_":
                is_error = name == "val_eer"
                best = int(values.argmin() if is_error else values.argmax())
                label += f", {'lowest' if is_error else 'highest'} {values[best]:.4f}"
                values = np.maximum(values if is_error else 1 - values, _LEAST_ERROR)
                axis.plot(steps[best], values[best], "o", color=colour, markersize=4)
                axis.set(yscale="log", ylabel="EER, or 1 - value")
            line, alpha = _LINES[number % len(_LINES)], 1 / (1 + number / 2)
            marker = "." if len(steps) == 1 else None
            axis.plot(steps, values, line, marker=marker, color=colour, alpha=alpha, label=label)
        if axis.lines:
            axis.set_xlim(left=0)
            axis.margins(y=0.14)
            if axis.get_yscale() == "log":  # leaves room for the legend above the lines
                low, high = axis.get_ylim()
                axis.set_ylim(low, high * (high / low) ** 0.7)
                ticks = [tick for tick in _ERROR_TICKS if low <= tick]
                axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
                axis.minorticks_off()
            axis.legend(loc="best")
    return drawn


@styled
def roc_curve(roc: Roc, eer: float, tar_at_far: Mapping[float, float]) -> Figure:
    """Draw the true accept rate over the false accept rate, which has a logarithmic axis.

    Args:
        roc: The curve.
        eer: Equal error rate, marked on the curve.
        tar_at_far: False accept rate -> true accept rate of the points to mark.
    """
    drawn, (axis,) = figure()
    shown = roc.far > 0
    far, tar = roc.far[shown], roc.tar[shown]
    least = max(1e-6, float(far[0]))
    axis.fill_between(far, tar, step="post", color=RIGHT, alpha=0.1, linewidth=0)
    axis.step(far, tar, where="post", color=RIGHT)
    bottom = float(tar[np.searchsorted(far, least)])
    for mark, value in tar_at_far.items():
        if mark >= least:
            axis.plot(mark, value, "o", color=RIGHT, markersize=4)
            _note(axis, f"{value:.2%}", (mark, value), (6, -12))
    axis.plot(eer, 1 - eer, "o", color=WRONG, markersize=4)
    # The offset puts the label below that of a FAR.
    _note(axis, f"EER {eer:.2%}", (eer, 1 - eer), (6, -26), colour=WRONG)
    axis.set(xscale="log", xlim=(least, 1), ylim=(bottom - 0.15 * (1.001 - bottom), 1.002))
    axis.set(xlabel="false accept rate", ylabel="true accept rate")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return drawn


@styled
def error_versus_reject(error_Q: npt.NDArray[np.floating]) -> Figure:
    """Draw the error of the remaining queries over the share that was rejected.

    Args:
        error_Q: Error without the n queries of lowest quality.
    """
    drawn, (axis,) = figure()
    drawn_P = np.unique(np.linspace(0, len(error_Q) - 1, _MAX_POINTS).astype(np.int64))
    share_P = drawn_P / len(error_Q)
    axis.plot(share_P, error_Q[drawn_P], color=RIGHT, label="lowest quality first")
    # With a perfect quality, all wrong answers are rejected first.
    ideal_P = np.maximum(0, error_Q[0] - share_P) / (1 - share_P)
    axis.plot(share_P, ideal_P, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
    axis.axhline(error_Q[0], color=WRONG, linewidth=1, label="at random")
    axis.set(xlim=(0, _MAX_REJECTED), xlabel="rejected queries", ylabel="error of the others")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return drawn


@styled
def similarity_histogram(same: Ints, different: Ints, threshold: float) -> Figure:
    """Draw the similarities of pairs of the same class and of different classes.

    Args:
        same: Pairs of the same class in each bin of a SimilarityHistogram.
        different: Pairs of different classes in the same bins.
        threshold: Similarity below which the answer is "unknown".
    """
    drawn, (axis,) = figure()
    edges = np.linspace(-1, 1, 101)
    for counts, colour, name in (
        (different, WRONG, "different classes"),
        (same, RIGHT, "same class"),
    ):
        coarse, _ = np.histogram(least_similarities(), edges, weights=counts)
        if coarse.any():
            share = coarse / coarse.sum()
            axis.stairs(share, edges, fill=True, color=colour, alpha=0.25)
            axis.stairs(share, edges, color=colour, linewidth=1.4, label=name)
    axis.set(xlim=(-1, 1), xlabel="cosine similarity", ylabel="share of pairs")
    axis.margins(y=0.1)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if threshold > -1:
        axis.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axis.annotate(
            f"unknown below {format_similarity(threshold)} ",
            (threshold, axis.get_ylim()[1]),
            xytext=(0, -9),
            textcoords="offset points",
            fontsize="small",
            ha="right",
        )
    axis.legend(loc="center left")
    return drawn


@styled
def class_accuracy(right_C: Ints, total_C: Ints, classes: Sequence[str]) -> Figure:
    """Draw the accuracy of the 40 worst classes, in the order of `worst_classes`.

    Bars extend from the accuracy to 1, so their length is the error rate.

    Args:
        right_C: Correctly answered queries of each class.
        total_C: Queries of each class; classes without queries are left out.
        classes: Class names.
    """
    labels = worst_classes(right_C, total_C)[:MAX_BARS]
    accuracy = right_C[labels] / total_C[labels]
    names = [short_name(classes[label]) for label in labels.tolist()]
    drawn, (axis,) = figure(
        height=max(SQUARE, 0.8 + 0.17 * len(labels)), margins=(name_margin(names), 1.6, 0.5, 0.15)
    )
    positions = np.arange(len(labels))
    axis.barh(positions, 1 - accuracy, left=accuracy, height=0.66, color=WRONG, alpha=0.85)
    for position, label, value in zip(positions.tolist(), labels, accuracy, strict=True):
        _note(axis, f"{value:.2%}", (1, position), (7, -3))
        wrong = total_C[label] - right_C[label]
        _note(axis, f"{wrong:,} / {total_C[label]:,}", (1, position), (54, -3))
    low = float(accuracy.min()) if accuracy.min() < 1 else 0.9
    axis.set(
        xlim=(low, 1),
        ylim=(len(labels) - 0.4, -0.6),
        xlabel="accuracy and wrong answers / queries",
    )
    axis.set_yticks(positions, names)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, prune="upper"))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.grid(visible=False, axis="y")
    return drawn


@styled
def confusion_matrix(counts_SS: Ints, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix with mistakes on a logarithmic colour scale.

    Counts are shown for up to 16 classes and names for up to 40. For more than 200 classes, a cell
    covers several classes and shows their largest count, so that a single mistake stays visible.

    Args:
        counts_SS: Rows true class, columns predicted class.
        names: Class names.
    """
    size = len(names)
    named = size <= _MAX_NAMED_CLASSES
    margin = name_margin(names) if named else 0.6
    drawn, (axis,) = figure(height=SQUARE, margins=(margin, 0.2, margin, 0.15))
    mistakes = counts_SS.copy()
    np.fill_diagonal(mistakes, 0)
    most = max(int(mistakes.max()), 1)
    starts = np.arange(0, size, -(-size // _MAX_CELLS))
    pooled = np.maximum.reduceat(np.maximum.reduceat(mistakes, starts, axis=0), starts, axis=1)
    axis.imshow(
        _cell_colours(pooled, most),
        extent=(-0.5, size - 0.5, size - 0.5, -0.5),
        interpolation="nearest",
        aspect="auto",
    )
    if size <= _MAX_NUMBERED_CLASSES:
        _write_counts(axis, counts_SS, most)
    elif mistakes.any():
        bar = drawn.colorbar(
            ScalarMappable(LogNorm(1, most + 1), _MISTAKE_COLOURS), ax=axis, pad=0.02
        )
        bar.outline.set_visible(False)
        bar.set_label("mistakes")
        bar.ax.minorticks_off()
        ticks = np.unique(np.geomspace(1, most, 4).astype(int)).tolist()
        bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    if named:
        short = [short_name(name) for name in names]
        axis.set_xticks(range(size), short, rotation=90 if max(map(len, short)) > 3 else 0)
        axis.set_yticks(range(size), short)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.grid(visible=False)
    return drawn


def _cell_colours(mistakes: Ints, most: int) -> npt.NDArray[np.float64]:
    """Return the RGBA colours [S, S, 4] of a confusion matrix."""
    cells: npt.NDArray[np.float64] = _MISTAKE_COLOURS(np.log1p(mistakes) / np.log1p(most))
    cells[mistakes == 0, 3] = 0
    diagonal = np.arange(len(mistakes))
    right = diagonal[mistakes.diagonal() == 0]  # a pooled diagonal cell can contain mistakes
    cells[right, right] = to_rgba(_DIAGONAL)
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


def _note(
    axis: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], colour: str = INK
) -> None:
    axis.annotate(
        text, at, xytext=offset, textcoords="offset points", fontsize="small", color=colour
    )

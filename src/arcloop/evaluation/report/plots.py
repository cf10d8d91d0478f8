"""Figures of an evaluation: arrays in, matplotlib Figure out. Nothing here touches pyplot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from arcloop.display.plotting import (
    CLASSES,
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
from arcloop.evaluation.metrics.verification import NUM_BINS, Roc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Points = npt.NDArray[np.float32]

_MOST_BARS = 40
_LABELLED_CLASSES = 30
_FARS = (1e-4, 1e-3, 1e-2)


@styled
def training_curves(curves: Sequence[dict[str, float]]) -> Figure | None:
    """Draw loss, validation metrics and learning rates over training steps.

    Args:
        curves: Rows of metrics.csv; "step" in each, and what was logged then.

    Returns:
        None if nothing was logged.
    """
    panels = (("loss", "_loss", WRONG), ("validation", "val_", RIGHT), ("learning rate", "lr", INK))
    columns = sorted({name for row in curves for name in row} - {"step", "epoch"})
    if not columns:
        return None
    drawn, axes = figure(3, width=2 * WIDTH, height=2.9, margins=(0.6, 0.2, 0.5, 0.32))
    for axis, (title, key, colour) in zip(axes, panels, strict=True):
        axis.set(title=title, xlabel="step")
        for number, name in enumerate(name for name in columns if key in name):
            logged = [(row["step"], row[name]) for row in curves if name in row]
            steps, values = np.array(logged).T
            label = name
            if key == "val_":
                highest = int(values.argmax())
                axis.plot(steps[highest], values[highest], "o", color=colour, markersize=4)
                label += f", highest {values[highest]:.4f}"
            axis.plot(steps, values, color=colour, alpha=1 / (1 + number), label=label)
        if axis.lines:
            axis.set_xlim(left=0)
            axis.margins(y=0.14)
            axis.legend()
    rates = axes[2].lines
    if rates:  # a bell in most schedules: the legend goes above it
        fastest = max(float(np.max(line.get_ydata())) for line in rates)
        axes[2].set_ylim(0, fastest * (1.1 + 0.12 * len(rates)))
        axes[2].legend(loc="upper right")
    return drawn


@styled
def roc_curve(roc: Roc, eer: float) -> Figure:
    """Draw true over false accept rate of verification, the latter on a log axis.

    Args:
        roc: The curve.
        eer: Equal error rate, marked on it.
    """
    drawn, (axis,) = figure()
    shown = roc.far > 0
    far, tar = roc.far[shown], roc.tar[shown]
    least = max(1e-5, float(far[0]))
    axis.fill_between(far, tar, step="post", color=RIGHT, alpha=0.1, linewidth=0)
    axis.step(far, tar, where="post", color=RIGHT)
    bottom = float(tar[np.searchsorted(far, least)])
    for mark in _FARS:
        if mark >= least:
            value = float(tar[np.searchsorted(far, mark, side="right") - 1])
            axis.plot(mark, value, "o", color=RIGHT, markersize=4)
            _note(axis, f"{value:.2%}", (mark, value), (6, -12))
    axis.plot(eer, 1 - eer, "o", color=WRONG, markersize=4)
    _note(axis, f"EER {eer:.2%}", (eer, 1 - eer), (6, -26), colour=WRONG)  # under that of a FAR
    axis.set(xscale="log", xlim=(least, 1), ylim=(bottom - 0.15 * (1.001 - bottom), 1.002))
    axis.set(xlabel="false accept rate", ylabel="true accept rate")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return drawn


@styled
def similarity_histogram(same: Ints, different: Ints, threshold: float) -> Figure:
    """Draw how similar pairs of one class and of different classes are.

    Args:
        same: Pairs of one class, in equal bins over [-1, 1].
        different: Pairs of different classes, in the same bins.
        threshold: Similarity under which an answer is "unknown".
    """
    drawn, (axis,) = figure()
    edges = np.linspace(-1, 1, 101)
    for counts, colour, name in (
        (different, WRONG, "different classes"),
        (same, RIGHT, "same class"),
    ):
        coarse = counts.reshape(100, NUM_BINS // 100).sum(axis=1)
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
            f"unknown under {threshold:.3f} ",
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
    """Draw the accuracy of each class, the worst first, of many classes the 40 worst.

    Bars reach from the accuracy to 1, so their length is the error.

    Args:
        right_C: Queries answered with their class.
        total_C: Queries of each class; classes without any are left out.
        classes: Names.
    """
    there = np.flatnonzero(total_C)
    accuracy = right_C[there] / total_C[there]
    order = np.lexsort((there, accuracy))[:_MOST_BARS]
    labels, accuracy = there[order], accuracy[order]
    names = [short_name(classes[label]) for label in labels]
    drawn, (axis,) = figure(
        height=max(SQUARE, 0.8 + 0.17 * len(labels)), margins=(name_margin(names), 1.6, 0.5, 0.15)
    )
    places = np.arange(len(labels))
    axis.barh(places, 1 - accuracy, left=accuracy, height=0.66, color=WRONG, alpha=0.85)
    for place, label, value in zip(places.tolist(), labels, accuracy, strict=True):
        _note(axis, f"{value:.2%}", (1, place), (7, -3))
        _note(
            axis, f"{total_C[label] - right_C[label]:,} / {total_C[label]:,}", (1, place), (54, -3)
        )
    low = float(accuracy.min()) if accuracy.min() < 1 else 0.9
    axis.set(
        xlim=(low, 1),
        ylim=(len(labels) - 0.4, -0.6),
        xlabel="accuracy, and wrong answers / queries",
    )
    axis.set_yticks(places, names)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, prune="upper"))
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.grid(visible=False, axis="y")
    return drawn


@styled
def projection_map(
    gallery_N2: Points,
    gallery_labels_N: Ints,
    queries_Q2: Points,
    query_labels_Q: Ints,
    right_Q: npt.NDArray[np.bool_],
    classes: Sequence[str],
) -> Figure:
    """Draw embeddings on a plane, coloured by class, wrongly answered queries ringed.

    Args:
        gallery_N2: Places of gallery rows, drawn pale.
        gallery_labels_N: Their classes.
        queries_Q2: Places of queries.
        query_labels_Q: Their true classes.
        right_Q: Whether each query was answered with its class.
        classes: Names, written at the middle of their gallery rows if they are not too many.
    """
    drawn, (axis,) = figure(width=2 * WIDTH, height=5.2, margins=(0.1, 0.1, 0.1, 0.1))
    colours = np.array(CLASSES)
    x, y = gallery_N2.T
    pale = colours[gallery_labels_N % len(colours)]
    axis.scatter(x, y, s=26, c=pale, alpha=0.22, linewidths=0)
    x, y = queries_Q2.T
    axis.scatter(x, y, s=7, c=colours[query_labels_Q % len(colours)], alpha=0.85, linewidths=0)
    x, y = queries_Q2[~right_Q].T
    axis.scatter(x, y, s=60, facecolors="none", edgecolors=WRONG, linewidths=1.3)
    shown = np.unique(gallery_labels_N)
    for label in shown if len(shown) <= _LABELLED_CLASSES else ():
        colour = colours[label % len(colours)]
        x, y = np.median(gallery_N2[gallery_labels_N == label], axis=0)
        axis.text(
            x,
            y,
            short_name(classes[label]),
            ha="center",
            va="center",
            weight="bold",
            color="white" if np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) < 0.6 else "black",
            bbox={
                "boxstyle": "round,pad=0.3",
                "facecolor": colour,
                "edgecolor": "white",
                "linewidth": 0.8,
            },
        )
    axis.set_axis_off()
    return drawn


def _note(
    axis: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], colour: str = INK
) -> None:
    axis.annotate(
        text, at, xytext=offset, textcoords="offset points", fontsize="small", color=colour
    )

"""The plots of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.measure import Comparison, Row

_REACHED, _MISSED = "#2a7f62", "#b5452c"


def ratios(compared: Sequence[Comparison], file: Path) -> None:
    """Draw a bar for each ratio divided by its target, on a logarithmic scale."""
    shown = list(reversed(compared))
    values = [c.ratio / (c.target or 1.0) for c in shown]
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.28 * len(shown)), layout="constrained")
    axis.barh(range(len(shown)), [v - 1 for v in values], left=1,
              color=[_REACHED if v >= 1 else _MISSED for v in values])  # fmt: skip
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(shown)), [c.name for c in shown], fontsize=8)
    axis.set_ylim(-1, len(shown))
    axis.set_xlabel("ratio / target; to the right of the line the target is reached")
    _save(figure, file)


def frontier(points: Sequence[Row], file: Path) -> None:
    """Draw queries per second over recall@1, one line for each kind of index."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name in dict.fromkeys(p["index"] for p in points):
        own = [p for p in points if p["index"] == name]
        label = f"{name}, {own[0]['bytes per vector']:.0f} bytes per vector"
        axis.plot([p["recall@1"] for p in own], [p["queries/s"] for p in own], "o-", label=label)
    axis.set_yscale("log")
    axis.set_xlabel("recall@1 against an exact search")
    axis.set_ylabel("queries per second")
    axis.set_title(f"{points[0]['rows']:,} x 128")
    axis.legend(fontsize=8)
    _save(figure, file)


def lines(rows: Sequence[Row], x: str, y: str, file: Path) -> None:
    """Draw one line for each value of the first column."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    key = next(iter(rows[0]))
    for name in dict.fromkeys(row[key] for row in rows):
        own = [row for row in rows if row[key] == name]
        axis.plot([row[x] for row in own], [row[y] for row in own], "o-", label=f"{key} {name}")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.legend(fontsize=8)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)

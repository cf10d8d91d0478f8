"""What the benchmarks share: recipes from the config, alternating rounds, a table of ratios."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from arcloop import steps
from arcloop.compose import compose_config

console = Console(width=110)


@dataclass(frozen=True)
class Comparison:
    """Rates of two ways of doing the same work, measured in turn; higher is better."""

    name: str
    ours: list[float]
    other: list[float]
    unit: str
    target: float

    @property
    def ratio(self) -> float:
        """Median over the rounds of ours / other."""
        return statistics.median(a / b for a, b in zip(self.ours, self.other, strict=True))


def alternate(
    name: str,
    ours: Callable[[], float],
    other: Callable[[], float],
    *,
    unit: str,
    target: float,
    rounds: int = 5,
) -> Comparison:
    """Measure A B A B ... after a round that is not counted; both return a rate."""
    ours(), other()
    pairs = [(ours(), other()) for _ in range(rounds)]
    return Comparison(name, [a for a, _ in pairs], [b for _, b in pairs], unit, target)


def show(comparisons: list[Comparison]) -> None:
    table = Table(title=machine())
    for column in ("comparison", "ours", "other", "ratio (median)", "target"):
        table.add_column(column)
    for c in comparisons:
        table.add_row(
            c.name,
            f"{statistics.median(c.ours):,.0f} {c.unit}",
            f"{statistics.median(c.other):,.0f} {c.unit}",
            f"{c.ratio:.3f}",
            f">= {c.target:.2f}",
        )
    console.print(table)


def machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__}"


def mnist_store(folder: Path) -> Path:
    """Prepare the bundled MNIST once for this benchmark."""
    store = folder / "store"
    steps.apply("prepare", compose_config(["experiment=mnist"]), {}, store)
    return store

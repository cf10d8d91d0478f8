"""Alternating measurements, new processes, and the contents of a section."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

console = Console(width=120)
Row = Mapping[str, Any]
T = TypeVar("T")


class Size(Enum):
    """Extent of the measurements: two minutes, a quarter of an hour, or an hour."""

    QUICK = "quick"
    USUAL = "usual"
    FULL = "full"

    def of(self, quick: T, usual: T, full: T) -> T:
        """Return the value for this size."""
        return {Size.QUICK: quick, Size.USUAL: usual, Size.FULL: full}[self]


@dataclass(frozen=True)
class Comparison:
    """Rates of two implementations of the same task, measured in turn; higher is better.

    Attributes:
        name: What was compared.
        ours: Rates of arcloop, one per round.
        other: Rates of the other implementation, one per round.
        unit: Unit of the rates.
        target: Ratio to reach; None: no target.
    """

    name: str
    ours: list[float]
    other: list[float]
    unit: str
    target: float | None

    @property
    def ratio(self) -> float:
        """Median over the rounds of ours / other."""
        return statistics.median(a / b for a, b in zip(self.ours, self.other, strict=True))

    @property
    def middle(self) -> tuple[float, float]:
        """Medians of both rates."""
        return statistics.median(self.ours), statistics.median(self.other)


@dataclass(frozen=True)
class Section:
    """Results of a benchmark.

    Attributes:
        comparisons: Ratios, most of them with a target.
        tables: Caption -> rows of one table, all with the same keys.
        notes: What was left out, and why.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Section:
        compared = [Comparison(**one) for one in value["comparisons"]]
        return cls(compared, dict(value["tables"]), list(value["notes"]))


def alternate(
    name: str,
    ours: Callable[[], float],
    other: Callable[[], float],
    *,
    unit: str,
    target: float | None,
    rounds: int = 5,
) -> Comparison:
    """Measure A B A B ... after a warm-up round; both functions return a rate."""
    ours(), other()
    pairs = [(ours(), other()) for _ in range(rounds)]
    return Comparison(name, [a for a, _ in pairs], [b for _, b in pairs], unit, target)


def in_process(
    module: str, *arguments: str, python: str = sys.executable, timeout_s: float = 1800
) -> Any:
    """Run `python -m module arguments` in a new process; return the JSON of its last line.

    Raises:
        RuntimeError: The process failed; the message has the end of its output.
    """
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [python, "-W", "ignore", "-m", module, *arguments],
        capture_output=True, text=True, check=False, timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_mib() -> float:
    """Return the peak resident size of this process in MiB, without that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def show(title: str, section: Section) -> None:
    """Print a section."""
    if section.comparisons:
        _print(title, [compared_row(one) for one in section.comparisons])
    for caption, rows in section.tables.items():
        _print(caption, rows)
    for note in section.notes:
        console.print(note)


def compared_row(one: Comparison) -> Row:
    ours, other = one.middle
    return {
        "comparison": one.name,
        "arcloop": f"{number(ours)} {one.unit}".strip(),
        "other": f"{number(other)} {one.unit}".strip(),
        "ratio": f"{one.ratio:.3g}",
        "target": "" if one.target is None else f"{one.target:.3g}",
        "reached": "" if one.target is None else ("yes" if one.ratio >= one.target else "no"),
    }


def _print(title: str, rows: Sequence[Row]) -> None:
    table = Table(title=title)
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(number(value) for value in row.values()))
    console.print(table)


def number(value: Any) -> str:
    """Format a number with three or four significant digits.

    >>> number(12345.6), number(0.98765), number(34.56), number("a"), number(7), number(None)
    ('12,346', '0.9877', '34.56', 'a', '7', '')
    """
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"

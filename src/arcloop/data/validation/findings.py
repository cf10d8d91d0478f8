"""What validation finds, all of it counted and as much listed as a person would read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        level: An error ends the chain; a warning does not.
        check: Which check found it, e.g. "checksum".
        message: What is wrong.
        split: Where: one of the splits, if the fault is in one.
        file: Path of the file within the store, if it is in one.
        row: Row within that file, if it is one.
    """

    level: Level
    check: str
    message: str
    split: str | None = None
    file: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        place = self.file or self.split
        row = "" if self.row is None else f" row {self.row}"
        return f"{place}{row}: {self.message}" if place else self.message


@dataclass
class Faults:
    """Collects faults: those of one check are listed up to `max_listed`, and all counted."""

    max_listed: int
    listed: list[Fault] = field(default_factory=list)
    counts: Counter[tuple[Level, str]] = field(default_factory=Counter)

    def add(self, fault: Fault) -> None:
        """Count a fault, and list it if there is room."""
        kind = (fault.level, fault.check)
        self.counts[kind] += 1
        if self.counts[kind] <= self.max_listed:
            self.listed.append(fault)

    def total(self, level: Level) -> int:
        """Return the number of faults of a level."""
        return sum(count for (found, _), count in self.counts.items() if found == level)

    def of(self, level: Level) -> list[Fault]:
        """Return the faults of a level that are listed."""
        return [fault for fault in self.listed if fault.level == level]

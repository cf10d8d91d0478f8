"""Errors and warnings of a validation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One error or warning.

    Attributes:
        level: An error fails the validation; a warning does not.
        check: Name of the check, e.g. "checksum".
        message: What is wrong.
        split: The split, if the finding concerns one split.
        file: Path of the file within the store, if the finding concerns one file.
        row: Row within the file, if the finding concerns one row.
    """

    level: Level
    check: str
    message: str
    split: str | None = None
    file: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        location = self.file or self.split
        row = "" if self.row is None else f" row {self.row}"
        return f"{location}{row}: {self.message}" if location else self.message


@dataclass
class Findings:
    """Collects findings; counts all of them and keeps the first `max_listed` of each check."""

    max_listed: int
    listed: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[Level, str]] = field(default_factory=Counter)

    def add(
        self,
        level: Level,
        check: str,
        message: str,
        *,
        split: str | None = None,
        file: str | None = None,
        row: int | None = None,
    ) -> None:
        """Add a finding, see `Finding` for the arguments."""
        self.counts[level, check] += 1
        if self.counts[level, check] <= self.max_listed:
            self.listed.append(
                Finding(level=level, check=check, message=message, split=split, file=file, row=row)
            )

    def count(self, level: Level) -> int:
        """Return the number of findings of a level, listed or not."""
        return sum(count for (found, _), count in self.counts.items() if found == level)

    def of_level(self, level: Level) -> list[Finding]:
        """Return the listed findings of a level."""
        return [finding for finding in self.listed if finding.level == level]

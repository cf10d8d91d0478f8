"""Errors and warnings about a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from arcloop.data.store.shards import Images

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One error or warning.

    Attributes:
        level: An error fails the validation; a warning does not.
        check: Name of the check, e.g. "checksum".
        message: What is wrong.
        split: The split, if the finding concerns one split.
        file: Path of the file within the store, if the finding concerns one file.
        row: Row within the file, if the finding concerns one row.
        image: Image file that the row was read from, relative to the root of the source; None if
            the source does not have one file per image.
    """

    level: Level
    check: str
    message: str
    split: str | None = None
    file: str | None = None
    row: int | None = None
    image: str | None = None

    def __str__(self) -> str:
        if self.image is not None:
            return f"{self.image} ({self.split}): {self.message}"
        location = self.file or self.split
        row = "" if self.row is None else f" row {self.row}"
        return f"{location}{row}: {self.message}" if location else self.message


@dataclass
class Findings:
    """Collects findings: counts all, and keeps the first `max_listed` of each check.

    Attributes:
        max_listed: Maximum number of findings that are listed, for each check.
        listed: The first findings of each check.
        counts: Level and check -> number of findings.
        pictures: Listed finding -> its images, uint8 [H, W, C], that can be read: the image, and
            the one that it resembles, if the finding is about two.
    """

    max_listed: int
    listed: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[Level, str]] = field(default_factory=Counter)
    pictures: dict[Finding, list[Images]] = field(default_factory=dict)

    def add(self, finding: Finding) -> bool:
        """Add a finding, and return whether it is listed."""
        key = finding.level, finding.check
        self.counts[key] += 1
        is_listed = self.counts[key] <= self.max_listed
        if is_listed:
            self.listed.append(finding)
        return is_listed

    def count(self, level: Level) -> int:
        """Return the number of findings of a level, listed or not."""
        return sum(count for (found, _), count in self.counts.items() if found == level)

    def of_level(self, level: Level) -> list[Finding]:
        """Return the listed findings of a level."""
        return [finding for finding in self.listed if finding.level == level]

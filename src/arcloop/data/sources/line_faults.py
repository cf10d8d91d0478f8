"""What is wrong with the lines of a list: all of it counted, as much named as one would read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from arcloop.errors import DataError

_LISTED = 20  # faults of a kind


@dataclass
class LineFaults:
    """Faults of a file: of each kind, so many are listed, and all are counted."""

    listed: list[tuple[int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, line: int, message: str) -> None:
        """Note one; the kind is what several of it are called."""
        self.counts[kind] += 1
        if self.counts[kind] <= _LISTED:
            self.listed.append((line, message))

    def fail(self, file: Path) -> None:
        """End the work if there is any.

        Raises:
            DataError: Names the lines.
        """
        if not self.counts:
            return
        listed = "".join(f"\n    line {line}: {message}" for line, message in sorted(self.listed))
        more = "".join(
            f"\n    and {count - _LISTED} more {kind}"
            for kind, count in self.counts.items()
            if count > _LISTED
        )
        raise DataError(
            f"the list of images has {self.counts.total()} fault(s):{listed}{more}",
            where=file.absolute(),
            remedy="correct these lines",
        )

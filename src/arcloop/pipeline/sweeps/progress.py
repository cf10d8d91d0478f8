"""One line per finished job of a sweep, printed by the process of the command.

The lines are made from the records that jobs write to a temporary folder of the command, so they
are the same for every launcher.
"""

from __future__ import annotations

import datetime
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TextIO

from arcloop.pipeline.sweeps.record import JobRecord

_POLL_SECONDS = 0.2
_SHOWN = {
    "index": ("top1", "index_recall_at_10", "index_bytes"),
    "evaluate": ("top1", "map_at_r", "eer"),
}
"""Verb that trains nothing -> names of the metrics to print; other verbs print all of theirs."""
_MAX_SHOWN = 3


@dataclass
class SweepProgress:
    """Prints the lines from a thread between `__enter__` and `__exit__`.

    Attributes:
        results: Folder to which the jobs of this command write their records.
        total: Number of jobs of the sweep.
        at_once: Number of jobs that run in parallel.
        monitor: Name of the objective.
        mode: "max" or "min" of the objective.
        stream: Where the lines are written.
    """

    results: Path
    total: int
    at_once: int
    monitor: str
    mode: str
    stream: TextIO
    _seen: dict[int, JobRecord] = field(default_factory=dict)
    _best: int | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._print_new()

    @property
    def records(self) -> Sequence[JobRecord]:
        """Records of the jobs that ended, in the order of their numbers."""
        return [record for _, record in sorted(self._seen.items())]

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._print_new()

    def _print_new(self) -> None:
        """Print a line for each record that was written since the last call."""
        for file in sorted(self.results.glob("[0-9]*.json")):
            number = int(file.stem)
            record = None if number in self._seen else JobRecord.read(file)
            if record is not None:
                self._seen[number] = record
                self.stream.write(f"{self._line(number, record)}\n")
                self.stream.flush()

    def _line(self, number: int, record: JobRecord) -> str:
        """Return the line of a job; its number starts at 0 and is shown from 1."""
        total = max(self.total, number + 1)
        point = " ".join(f"{key}={_unquote(value)}" for key, value in record.swept.items())
        parts = [f"job {number + 1} of {total}", point, self._outcome(record)]
        before = "not repeated" if record.failure else "finished before"
        parts.append(before if record.reused else _format_seconds(_seconds(record)))
        if self._is_best(record):
            self._best = number
        if self._best is not None:
            best = self._seen[self._best].objective
            parts.append(f"best {best:.4f} (job {self._best + 1})")
        ran = [r for r in self._seen.values() if not r.reused]
        if ran and (remaining := total - len(self._seen)) > 0:
            mean = sum(map(_seconds, ran)) / len(ran)
            left = mean * math.ceil(remaining / self.at_once)
            parts.append(f"about {_format_seconds(left)} left")
        return "  ".join(parts)

    def _outcome(self, record: JobRecord) -> str:
        if record.failure is not None:
            return f"failed: {record.failure.what.partition(chr(10))[0]}"
        if record.pruned is not None:
            pruned = record.pruned
            return f"pruned after epoch {pruned.epoch} with {self.monitor} {pruned.value:.4f}"
        if record.objective is not None:
            return f"{self.monitor} {record.objective:.4f}"
        names = _SHOWN.get(record.verb, sorted(record.metrics))
        shown = [
            f"{name} {_format_value(record.metrics[name])}"
            for name in names
            if name in record.metrics
        ]
        return " ".join(shown[:_MAX_SHOWN]) or "finished"

    def _is_best(self, record: JobRecord) -> bool:
        value = record.objective
        if value is None or record.failure or record.pruned or not math.isfinite(value):
            return False
        best = None if self._best is None else self._seen[self._best].objective
        return best is None or (value > best if self.mode == "max" else value < best)


def _seconds(record: JobRecord) -> float:
    start, end = map(datetime.datetime.fromisoformat, (record.started, record.ended))
    return (end - start).total_seconds()


def _unquote(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _format_value(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _format_seconds(seconds: float) -> str:
    """Return a duration in the unit that needs at most two digits before the point.

    >>> [_format_seconds(s) for s in (0.4, 12, 90, 7200)]
    ['0.4 s', '12 s', '2 min', '2.0 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"

"""kfp.local's output -> a log file, a line per step on the terminal, and the cause of a failure."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self, TextIO

from arcloop.display.terminal import say

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '(?P<task>[\w-]+)'")
_ENDED = re.compile(r"Task '(?P<task>[\w-]+)' finished with status (?P<status>\w+)")
_CACHED = re.compile(r"Task (?P<task>[\w-]+) cache hit")
_EVALUATION = re.compile(r"""["'](/[^"']*/evaluation_out)["']""")
_ERROR = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Z]\w*)(?:: (?P<message>.*))?$")
_OURS = ("ArtifactError", "ConfigError", "DataError", "ResourceError")
_FRAME = re.compile(r"^(Traceback \(most recent call last\):|  File \"|During handling|The above)")


@dataclass
class TaskRun:
    """What became of a task.

    Attributes:
        name: Of the task.
        state: "ran", "cached" or "failed".
        seconds: How long it took.
        output: Lines it printed.
    """

    name: str
    state: str
    seconds: float = 0.0
    output: list[str] = field(default_factory=list)

    @property
    def cause(self) -> str:
        """The error that ended it, as it was told; its last line where there is none."""
        return _cause(self.output)


class LocalLog(io.TextIOBase):
    """Stands in for standard output while a pipeline runs; `tasks` is what it saw."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}.log"
        self.tasks: list[TaskRun] = []
        self.evaluation = ""  # folder of the evaluation that a step was given or made
        self._rest = ""
        self._began = 0.0

    @property
    def failed(self) -> TaskRun | None:
        """The task that failed; of one that was tried again, its last try."""
        return next((task for task in reversed(self.tasks) if task.state == "failed"), None)

    def __enter__(self) -> Self:
        self._file: TextIO = open(self.path, "w", encoding="utf-8")
        self._redirected = contextlib.redirect_stdout(self)
        self._redirected.__enter__()
        root = logging.getLogger()
        self._level, self._handler = root.level, logging.StreamHandler(self)
        root.addHandler(self._handler)
        root.setLevel(logging.INFO)  # at which kfp tells of what comes from its cache
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        logging.getLogger().setLevel(self._level)
        self._redirected.__exit__(None, None, None)
        self._line(self._rest)
        self._file.close()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._file.write(_COLOUR.sub("", text))
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(_COLOUR.sub("", line))
        return len(text)

    def _line(self, line: str) -> None:
        if found := _CACHED.search(line):
            self.tasks.append(TaskRun(found["task"], "cached"))
            say(f"{found['task']}: from the cache")
        elif found := _STARTED.search(line):
            self.tasks.append(TaskRun(found["task"], "running"))
            self._began = time.perf_counter()
        elif (found := _ENDED.search(line)) and self.tasks:
            task = self.tasks[-1]
            task.seconds = time.perf_counter() - self._began
            task.state = "ran" if found["status"] == "SUCCESS" else "failed"
            say(f"{task.name}: {task.state}, {task.seconds:.1f} s")
        elif self.tasks and self.tasks[-1].state == "running":
            self.tasks[-1].output.append(line.removeprefix("    "))
        if found := _EVALUATION.search(line):
            self.evaluation = found[1]


def _cause(output: list[str]) -> str:
    """Find the last traceback's own message, with the lines it goes on over."""
    starts = [n for n, line in enumerate(output) if line.startswith("Traceback (most recent")]
    if not starts:
        lines = [line for line in output if line.strip()]
        return lines[-1].strip() if lines else "it printed nothing"
    for number in range(starts[-1] + 1, len(output)):
        line = output[number]
        if line.startswith(" ") or not (found := _ERROR.match(line)):
            continue
        message = [found["message"] or found[1]]
        for more in output[number + 1 :]:
            if not more.strip() or not more.startswith("  ") or _FRAME.match(more):
                break
            message.append(more)
        bare = found[1] in _OURS or not found["message"]
        return "\n".join(message if bare else [f"{found[1]}: {message[0]}", *message[1:]])
    return output[-1].strip()

"""Errors of earlier attempts of a task, which end its retries.

A KFP server retries a task after every failure, whatever its cause: the launcher replaces the exit
code of the task by 1, and the retry policy of a task has no condition. An error that would occur
again is therefore recorded next to the output of the task. A retry that finds the record raises the
error at once. This needs an output on a volume, where every attempt has the same folder.

Training in several processes of one machine uses the same record, because the command only receives
the exit codes of the processes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from arcloop.artifacts.atomic import write_json
from arcloop.errors import ArcloopError, ConfigError, DataError, DivergedError

RETRY_INDEX = "KFP_RETRY_INDEX"
"""Environment variable with the number of the attempt, from 0; set by servers from 2.16 on."""
_LASTING = {kind.__name__: kind for kind in (ConfigError, DataError, DivergedError)}
"""Errors that occur again with the same inputs."""


@contextlib.contextmanager
def end_retries(output: Path) -> Iterator[None]:
    """Raise the error that an earlier attempt recorded; else run the block and record its error.

    The first attempt removes the record: if a user retries a failed run, the cause may have been
    corrected. An attempt without a number removes it too, because it may be the first one.

    Args:
        output: Folder that the task writes.

    Raises:
        ConfigError, DataError, DivergedError: An earlier attempt failed with this error.
    """
    if os.environ.get(RETRY_INDEX, "0") == "0":
        remove_record(output)
    raise_recorded(output)
    with record_error(output):
        yield


@contextlib.contextmanager
def record_error(output: Path) -> Iterator[None]:
    """Record an error that would occur again, next to the output, and raise it.

    An existing record is kept: in a distributed training, the process that failed records its error
    first, and the process that started it only knows the exit code.
    """
    try:
        yield
    except tuple(_LASTING.values()) as error:
        details = {
            "error": type(error).__name__,
            "exit_code": error.exit_code,
            "what": error.what,
            "where": None if error.where is None else str(error.where),
            "remedy": error.remedy,
        }
        with contextlib.suppress(OSError):  # the error itself is more important than its record
            if not _record(output).exists():
                write_json(_record(output), details)
        raise


def raise_recorded(output: Path) -> None:
    """Raise the error that an attempt recorded, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(_record(output).read_bytes())
        kind: type[ArcloopError] = _LASTING[found["error"]]
        raise kind(found["what"], where=found["where"], remedy=found["remedy"])


def remove_record(output: Path) -> None:
    """Remove the record of an error, if there is one."""
    _record(output).unlink(missing_ok=True)


def _record(output: Path) -> Path:
    return output.with_name(f"{output.name}.failed.json")

"""The errors a user can cause. Each says what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

INTERRUPTED = 130


class ArcloopError(Exception):
    """A fault that the user can mend; the command line prints it without a traceback.

    Args:
        what: One sentence: what is wrong.
        where: The file, key, row or folder it was found in.
        remedy: What to do about it, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        lines = [what]
        if where is not None:
            lines.append(f"  where: {where}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default protocol when a worker process raises.
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(
    kind: type[ArcloopError], what: str, where: object, remedy: str | None
) -> ArcloopError:
    return kind(what, where=where, remedy=remedy)


class ConfigError(ArcloopError):
    """The configuration is wrong: found before any work starts."""

    exit_code = 2


class DataError(ArcloopError):
    """Images, labels or a store are wrong."""


class ArtifactError(ArcloopError):
    """An artifact is missing, half written, changed since it was written, or of another lineage."""


class ResourceError(ArcloopError):
    """The machine cannot do it: disk full, target read-only, memory exhausted, a process lost."""


class DivergedError(ArcloopError):
    """Training left the finite numbers; the same config does so again."""


_MACHINE_AT_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def mendable(cause: BaseException) -> ArcloopError | None:
    """Return the error that a user can mend, if this is one: ours, or a refusal of the machine."""
    if isinstance(cause, ArcloopError):
        return cause
    if isinstance(cause, OSError) and cause.errno in _MACHINE_AT_FAULT:
        return unwritable(Path(cause.filename or "."), cause)
    return None


def unwritable(path: Path, cause: OSError) -> ResourceError:
    """Turn the operating system's refusal to write `path` into an error with a remedy."""
    return ResourceError(
        f"cannot write: {cause.strerror or cause}",
        where=path,
        remedy="free some space there, or choose another folder you may write to",
    )


def report_errors(work: Callable[[], int]) -> int:
    """Do the work; tell what a user can mend as one message, and return the exit code."""
    try:
        return work()
    except KeyboardInterrupt:
        print(
            "interrupted; nothing half-written counts, and the same command goes on",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception as cause:
        error = mendable(cause)
        if error is None or os.environ.get("ARCLOOP_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code

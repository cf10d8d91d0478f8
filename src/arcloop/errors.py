"""Errors that a user can cause and correct. Each names the fault, its place and the remedy.

ArcloopError          exit code 1
├── ConfigError       exit code 2: the configuration is wrong; no work was started
├── DataError         images, labels or a store are wrong
├── ArtifactError     an artifact is missing, damaged or does not belong to another one
├── ResourceError     the machine lacks space, memory, permission or a process
└── DivergedError     the training loss is not finite
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

GATE_NOT_PASSED, INTERRUPTED, TERMINATED = 3, 130, 143
"""Exit codes of runs without an error."""


class ArcloopError(Exception):
    """An error that the user can correct. The command line prints it without a traceback.

    Args:
        what: One sentence that describes the fault.
        where: The file, folder, row or config key.
        remedy: An instruction that corrects it.
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
        # The default protocol loses keyword-only arguments when a worker process raises.
        make = functools.partial(type(self), where=self.where, remedy=self.remedy)
        return make, (self.what,)


class ConfigError(ArcloopError):
    """The configuration is wrong. It is raised before any work starts."""

    exit_code = 2


class DataError(ArcloopError):
    """Images, labels or a store are wrong."""


class ArtifactError(ArcloopError):
    """An artifact is missing, incomplete, changed since it was written, or of another lineage."""


class ResourceError(ArcloopError):
    """The machine lacks a resource: disk space, permission, memory, or a process that ended."""


class DivergedError(ArcloopError):
    """The training loss is not finite. Training again with the same config gives the same error."""


_FULL = "free some space there, or choose another folder"
_FORBIDDEN = "choose a folder in which you have write permission"
_OTHER_KIND = "choose another path, or remove what is there"
_REMEDIES = {
    errno.ENOSPC: _FULL, errno.EDQUOT: _FULL,
    errno.EACCES: _FORBIDDEN, errno.EPERM: _FORBIDDEN, errno.EROFS: _FORBIDDEN,
    errno.ENOTDIR: _OTHER_KIND, errno.EISDIR: _OTHER_KIND, errno.EEXIST: _OTHER_KIND,
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name; most file systems allow 255 bytes",
    errno.ELOOP: "remove the symbolic link, which leads back to itself",
    errno.EFBIG: "raise the limit on the size of files, see `ulimit -f`",
    errno.EMFILE: "raise the limit on open files, see `ulimit -n`",
    errno.ENOMEM: "free some memory, or use fewer processes",
    errno.EAGAIN: "raise the limit on processes, see `ulimit -u`, or use fewer",
}  # fmt: skip
_BAD_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def as_user_error(cause: BaseException) -> ArcloopError | None:
    """Return the error as one that the user can correct.

    Returns:
        An `ArcloopError` unchanged; for any `OSError` of the operating system an error with its
        path and a remedy; None for any other exception.
    """
    if isinstance(cause, ArcloopError):
        return cause
    if isinstance(cause, OSError) and cause.errno is not None:
        return _os_error("cannot read or write", cause.filename, cause)
    return None


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise the errors of `as_user_error` in place of those of the operating system."""
    try:
        yield
    except Exception as cause:
        error = as_user_error(cause)
        if error is None or error is cause:
            raise
        raise error from cause


def write_error(path: object, cause: OSError) -> ArcloopError:
    """Convert an `OSError` on writing `path` to an error with a remedy."""
    return _os_error("cannot write", path, cause)


def _os_error(action: str, path: object, cause: OSError) -> ArcloopError:
    """Return a `ConfigError` for a path that cannot exist, otherwise a `ResourceError`."""
    kind = ConfigError if cause.errno in _BAD_PATHS else ResourceError
    reason = cause.strerror or str(cause)
    remedy = _REMEDIES.get(cause.errno or 0, "correct the cause and repeat the command")
    return kind(f"{action}: {reason}", where=path, remedy=remedy)


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


class TrainingPruned(Exception):  # noqa: N818 - the run is not faulty
    """A pruner ended the training of a job of a sweep, because other jobs are better.

    Args:
        epoch: Number of completed epochs.
        value: Value of the monitored metric after them.
    """

    def __init__(self, epoch: int, value: float) -> None:
        self.epoch, self.value = epoch, value
        super().__init__(epoch, value)


def raise_terminated(*_: object) -> None:
    """Handle SIGTERM by raising `Terminated`."""
    raise Terminated


def report_errors(work: Callable[[], int]) -> int:
    """Call `work`, print an error that the user can correct, and return the exit code."""
    try:
        return work()
    except KeyboardInterrupt as cause:
        word, code = "interrupted", INTERRUPTED
        if isinstance(cause, Terminated):
            word, code = "terminated", TERMINATED
        print(
            f"{word}; incomplete artifacts were discarded. The same command makes what is missing",
            file=sys.stderr,
        )
        return code
    except Exception as cause:
        error = as_user_error(cause)
        if error is None or os.environ.get("ARCLOOP_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def first_line(cause: BaseException) -> str:
    r"""Return the first line of the message of an exception, or its type if there is no message.

    >>> first_line(ValueError("no such file\n  in line 3")), first_line(TimeoutError())
    ('no such file', 'TimeoutError')
    """
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def list_some(names: Sequence[str], limit: int = 10, separator: str = ", ") -> str:
    """Join the first names for a message, and count the rest.

    >>> list_some(["a", "b", "c", "d"], limit=2)
    'a, b and 2 more'
    """
    listed = separator.join(names[:limit])
    if len(names) <= limit:
        return listed
    return f"{listed}{' ' if separator == ', ' else separator}and {len(names) - limit} more"

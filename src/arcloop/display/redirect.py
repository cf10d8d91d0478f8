"""Redirect the output of this process and of its children to a file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_DESCRIPTORS = (1, 2)  # standard output and standard error


@contextlib.contextmanager
def redirect_output(file: Path) -> Iterator[None]:
    """Append everything that this process and its children print to a file.

    Libraries in C and child processes write to the file descriptors, Python code to `sys.stdout`
    and `sys.stderr`; both are replaced.

    Args:
        file: The file; missing folders are created.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    copies = [os.dup(descriptor) for descriptor in _DESCRIPTORS]
    try:
        with open(file, "a", buffering=1, encoding="utf-8", errors="replace") as log:
            for descriptor in _DESCRIPTORS:
                os.dup2(log.fileno(), descriptor)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
    finally:
        for descriptor, copy in zip(_DESCRIPTORS, copies, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


@contextlib.contextmanager
def keep_error_stream() -> Iterator[TextIO]:
    """Yield a stream to the present standard error, which `redirect_output` does not change."""
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except OSError:  # a stream without a file, such as a buffer
        yield sys.stderr
        return
    with open(descriptor, "w", buffering=1, encoding=sys.stderr.encoding, errors="replace") as kept:
        yield kept

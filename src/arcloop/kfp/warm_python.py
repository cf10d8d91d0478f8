"""A Python that has imported torch and the rest already, for the steps of a local run."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_HERE = Path(__file__).parent


@contextlib.contextmanager
def warm_python() -> Iterator[Path]:
    """Yield an executable that runs `-m MODULE ...` as Python does, the packages imported already.

    It serves until the context ends.
    """
    with tempfile.TemporaryDirectory(prefix="arcloop-") as name:
        socket, executable = Path(name) / "socket", Path(name) / "python"
        client = [sys.executable, "-I", "-S", str(_HERE / "step_client.py"), str(socket)]
        executable.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        executable.chmod(0o700)
        server = subprocess.Popen(
            [sys.executable, str(_HERE / "step_server.py"), str(socket)], stdin=subprocess.PIPE
        )
        try:
            while not socket.exists() and server.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(0.01)
            yield executable
        finally:
            assert server.stdin
            server.stdin.close()
            server.wait()

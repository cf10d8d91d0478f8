"""`python guard.py COMMAND...`: run a server for as long as whoever started it lives.

Standard input is a pipe whose other end the starter holds and never writes to. However the starter
ends, SIGKILL included, the pipe ends with it, and then the server and all its processes end too:
first by SIGTERM, then by SIGKILL. The guard leads their process group and was there before them, so
there is no moment at which they could be left behind. Needs nothing but Python's own library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

GRACE_SECONDS = 5.0


def main(command: Sequence[str]) -> int:
    """Run the command, pass SIGTERM on to it, and return its exit code."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def pass_on(number: int, _: FrameType | None) -> None:
        server.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    alone = threading.Event()
    watch = threading.Thread(target=_watch, args=[server, alone], daemon=True)
    watch.start()
    code = server.wait()
    if alone.is_set():
        watch.join()  # TorchServe's first process ends at once, and leaves its others
    return code


def _watch(server: subprocess.Popen[bytes], alone: threading.Event) -> None:
    """Wait for the end of the pipe, then end the server and whatever it started, and this too."""
    while os.read(0, 1):
        pass
    alone.set()
    server.terminate()
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

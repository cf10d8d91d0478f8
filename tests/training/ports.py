"""Choice of a free port."""

import contextlib
import random
import socket


def free_port():
    """Return a free port outside the kernel's ephemeral range, so that no connection takes it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

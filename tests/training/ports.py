"""A port that stays free until it is used."""

import contextlib
import random
import socket


def free_port():
    """Below those that the kernel hands out, so that no connection takes it in between."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

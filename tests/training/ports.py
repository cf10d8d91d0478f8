"""Choice of free ports."""

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


def free_ports(count):
    """Return different free ports."""
    ports = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)

"""`python -m benchmarks.serving.attacks [NAME...]`: attack the FastAPI server on loopback.

Attacks a server of a small model for 15 seconds at a time, while a good client sends one small
image after another. Prints, as JSON for each attack, the answers to readiness probes and to the
good client, its slowest answer, and the additional resident memory of the server.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from arcloop.serving.servers.entrypoint import send_request
from arcloop.serving.servers.process import FastApiServer
from benchmarks.serving.workload import make

_SECONDS, _TIMEOUT = 15.0, 60.0


class Target:
    """A server under attack.

    Args:
        server: The running server.
    """

    def __init__(self, server: FastApiServer) -> None:
        self.url = server.endpoint.url
        self.root, _, _ = self.url.partition("/predictions")
        self.address = self.root.removeprefix("http://").split(":")
        self.process = psutil.Process(server.process.pid)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.address[0], int(self.address[1])), timeout=_TIMEOUT)

    def send(self, method: str, url: str, body: bytes = b"") -> tuple[int | str, float]:
        """Return the status, or the name of the error, and the duration in seconds."""
        start = time.perf_counter()
        try:
            status: int | str = send_request(method, url, _TIMEOUT, body)[0]
        except OSError as cause:
            status = type(cause).__name__
        return status, time.perf_counter() - start

    def memory(self) -> int:
        family = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_info().rss for one in family)


def main(names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="arcloop-attacks-") as name:
        workload = make(Path(name), 10_000, workers=1)
        results = {}
        attacks = (overload, unfinished_bodies, large_head, silent_connections, large_images)
        for attack in (one for one in attacks if one.__name__ in names or not names):
            folder = Path(name) / attack.__name__
            folder.mkdir()
            with FastApiServer(workload.settings, workload.archive, folder) as server:
                server.wait_until_ready()
                results[attack.__name__] = measure(Target(server), attack)
    json.dump(results, sys.stdout, indent=2)


Attack = Callable[["Target", threading.Event], contextlib.AbstractContextManager[None]]


def measure(target: Target, attack: Attack) -> dict[str, Any]:
    """Attack for some seconds; the good client and the probes send one request at a time."""
    good, before = _encode(Image.new("RGB", (64, 64), (200, 30, 30))), target.memory()
    ready: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    slowest, largest = 0.0, before
    ended = threading.Event()
    with attack(target, ended):
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            status, _ = target.send("GET", f"{target.root}/ready")
            ready[str(status)] += 1
            status, seconds = target.send("POST", target.url, good)
            answers[str(status)] += 1
            slowest, largest = max(slowest, seconds), max(largest, target.memory())
            time.sleep(0.05)
        ended.set()
    return {
        "ready": dict(ready),
        "good_client": dict(answers),
        "slowest_s": round(slowest, 2),
        "more_memory_mb": round((largest - before) / 1e6),
    }


@contextlib.contextmanager
def overload(target: Target, ended: threading.Event) -> Iterator[None]:
    """150 clients send images as fast as they are answered."""
    image = _encode(Image.effect_noise((600, 600), 50))
    with _clients(150, lambda: target.send("POST", target.url, image), ended):
        yield


@contextlib.contextmanager
def unfinished_bodies(target: Target, _ended: threading.Event) -> Iterator[None]:
    """300 uploads of 5 MB without the last byte."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(target.connect())
                path = target.url.removeprefix(target.root)
                head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n"
                connection.sendall(head.encode())
                connection.sendall(bytes(4_999_999))
        yield


@contextlib.contextmanager
def large_head(target: Target, ended: threading.Event) -> Iterator[None]:
    """A client sends a request head of 300 MB, again and again."""

    def send() -> None:
        with contextlib.suppress(OSError), target.connect() as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nX: ")
            for _ in range(300):
                if not ended.is_set():
                    connection.sendall(b"x" * 1_000_000)

    with _clients(1, send, ended):
        yield


@contextlib.contextmanager
def silent_connections(target: Target, _ended: threading.Event) -> Iterator[None]:
    """1,500 connections that send nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(1500):
            with contextlib.suppress(OSError):
                stack.enter_context(target.connect())
        yield


@contextlib.contextmanager
def large_images(target: Target, ended: threading.Event) -> Iterator[None]:
    """16 clients send a PNG of a few kB with 33 megapixels."""
    image = _encode(Image.new("P", (5790, 5790)))
    with _clients(16, lambda: target.send("POST", target.url, image), ended):
        yield


@contextlib.contextmanager
def _clients(count: int, send: Callable[[], object], ended: threading.Event) -> Iterator[None]:
    def repeat() -> None:
        while not ended.is_set():
            send()

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(repeat)
        try:
            yield
        finally:
            ended.set()


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=image.mode == "P")
    return buffer.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])

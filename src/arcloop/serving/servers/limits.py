"""Limits on what clients can make the FastAPI server keep: connections, request heads and bodies.

uvicorn limits neither the size of a request head nor the time in which it must arrive.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 32 * 1024


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on connections and on the head of a request.

    A head of more than `HEAD_BYTES` gets status 431, and one that is not complete after `head_s`
    seconds gets 408. Beyond `max_connections`, a new connection replaces the one that has waited
    longest for the rest of a request, or for a new one, so that clients that send nothing cannot
    keep others out.

    Attributes:
        waits_since: Time since when the connection waits for bytes of its client; None while the
            server answers.
    """

    max_connections: ClassVar[int] = 1000
    head_s: ClassVar[float] = 5.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.waits_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waits_since = time.monotonic()
        self._expect_head()
        if len(self.connections) > self.max_connections:
            waiting = [
                one
                for one in self.connections
                if isinstance(one, LimitedProtocol) and one.waits_since is not None
            ]
            min(waiting, key=lambda one: one.waits_since or 0.0).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > HEAD_BYTES:
            self._refuse(431, "Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.waits_since = self.waits_since or time.monotonic()
        if self._head_timer is None:  # a further request of the connection
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        app = self.app
        if size > HEAD_BYTES:
            self.app = _head_is_too_large
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    def on_message_complete(self) -> None:
        self.waits_since = None  # the server has the whole request
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.waits_since = time.monotonic()
        super().on_response_complete()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.head_s, self._refuse, 408, "Request Timeout")

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, phrase: str) -> None:
        self._end_head()
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        )
        self.transport.close()


async def _head_is_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    text = f"the head of a request has more than {HEAD_BYTES:,} bytes"
    await PlainTextResponse(text, 431, {"connection": "close"})(scope, receive, send)


class BodyLimitError(Exception):
    """The bodies of all requests together exceed the limit; the client should try again later."""


class BodyBudget:
    """Reads request bodies whose sum is limited.

    Args:
        total: Maximum number of bytes of all bodies that are in memory.
        each: Maximum number of bytes of a body.
        idle_s: Longest time without a byte of a body.
        timeout_s: Longest time for a whole body.
    """

    def __init__(self, *, total: int, each: int, idle_s: float, timeout_s: float) -> None:
        self._free, self._each = total, each
        self._idle_s, self._timeout_s = idle_s, timeout_s

    async def read(self, request: Request) -> bytes | None:
        """Read a body; returns None, without storing it, if it exceeds the limit of a body.

        The caller passes the length of the body to `release` when it is no longer needed.

        Raises:
            TimeoutError: The body was not complete in time, or the client stopped sending.
            BodyLimitError: There is no memory left for it.
        """
        chunks: list[bytes] = []
        size = kept = 0
        end = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(end) as deadline:
                async for chunk in request.stream():
                    deadline.reschedule(min(end, asyncio.get_running_loop().time() + self._idle_s))
                    size += len(chunk)
                    if size > self._each:
                        chunks.clear()
                        self.release(kept)
                        kept = 0
                    elif self._free < len(chunk):
                        raise BodyLimitError
                    else:
                        self._free -= len(chunk)
                        kept += len(chunk)
                        chunks.append(chunk)
        except BaseException:
            self.release(kept)
            raise
        return None if size > self._each else b"".join(chunks)

    def release(self, size: int) -> None:
        """Return bytes of a body that is no longer in memory."""
        self._free += size

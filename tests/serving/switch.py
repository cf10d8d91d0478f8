"""A fake Kubernetes Service: one address that forwards connections to servers."""

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from urllib.parse import urlsplit


def place(endpoint):
    url = urlsplit(endpoint.url)
    return url.hostname, url.port


class Switch:
    """Forwards each TCP connection to the next of its backends; runs in a separate thread.

    As with a Service, open connections keep their backend when the backends change.
    """

    def __enter__(self):
        self._backends, self._open = [], Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._forward, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_):
        async def close():
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def direct_to(self, *endpoints):
        """Forward new connections to these endpoints only."""
        places = [place(endpoint) for endpoint in endpoints]
        self._turns = itertools.cycle(places)
        self._backends = places

    def wait_until_left(self, endpoint, timeout=30):
        """Wait until no connection to this endpoint is open."""

        async def left():
            async with asyncio.timeout(timeout):
                while self._open[place(endpoint)]:
                    await asyncio.sleep(0.01)

        self._do(left())

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _forward(self, reader, writer):
        backend = next(self._turns)
        self._open[backend] += 1
        try:
            inner_reader, inner_writer = await asyncio.open_connection(*backend)
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        except OSError:
            writer.transport.abort()
        finally:
            self._open[backend] -= 1


async def pump(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()

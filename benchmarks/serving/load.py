"""`load.py PORT PATH BODIES CLIENTS SECONDS`: send requests from a separate process; prints JSON.

BODIES is a JSON file: {"headers": {...}, "bodies": [base64, ...]}. Every client keeps one
connection and sends its next request when it has received a response. The clients use plain
streams, because they share the CPU cores with the server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from pathlib import Path

_WARM_UP_SHARE = 0.25


async def main(port: int, path: str, file: Path, clients: int, seconds: float) -> None:
    given = json.loads(file.read_text())
    requests = [_request(path, given["headers"], base64.b64decode(b)) for b in given["bodies"]]
    start = time.perf_counter() + seconds * _WARM_UP_SHARE
    end = start + seconds
    found = await asyncio.gather(
        *(_client(port, requests[n:] + requests[:n], start, end) for n in range(clients))
    )
    latencies = sorted(latency for _, one in found for latency in one)
    print(
        json.dumps(
            {
                "requests": sum(number for number, _ in found),
                "qps": len(latencies) / seconds,
                "p50_ms": 1000 * latencies[len(latencies) // 2],
                "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
            }
        )
    )


async def _client(
    port: int, requests: list[bytes], start: float, end: float
) -> tuple[int, list[float]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies = []
    number = 0
    while (sent := time.perf_counter()) < end:
        writer.write(requests[number % len(requests)])
        number += 1
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(head.decode())
        _, _, after = head.partition(b"content-length: ")
        await reader.readexactly(int(after.partition(b"\r\n")[0]))
        if sent >= start:
            latencies.append(time.perf_counter() - sent)
    writer.close()
    return number, latencies


def _request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


if __name__ == "__main__":
    asyncio.run(
        main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    )

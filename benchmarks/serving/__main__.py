"""`python -m benchmarks.serving [--peers PYTHON] [--rows 10000,1000000] [--seconds 3]`.

All servers serve the same archive, one after another on the same cores; the clients are in another
process. Calls of the predictor without a server are measured before and after each server. LitServe
and KServe's server need other package versions than arcloop: `--peers` names the Python of an
environment with `pip install litserve kserve torch faiss-cpu pillow pyyaml`; without it they are
not measured. Prints JSON.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from arcloop.serving.servers.process import FastApiServer, ServerProcess, TorchServe
from benchmarks.serving import OURS
from benchmarks.serving.workload import Workload, make

_HERE = Path(__file__).parent
_CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class RunningServer:
    """A running server.

    Attributes:
        port: Its port.
        path: Path of the URL that answers predictions.
        pid: Process id of its first process.
        bodies: Format of the requests: "raw", or JSON in the form "one" or "instances".
    """

    port: int
    path: str
    pid: int
    bodies: str = "raw"


Start = Callable[[Workload, Path], contextlib.AbstractContextManager[RunningServer]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="Python that has litserve and kserve")
    parser.add_argument("--rows", default="10000,1000000")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", default="", help="comma-separated names of servers")
    given = parser.parse_args()
    servers = _servers(given.peers)
    if given.only:
        servers = {name: servers[name] for name in given.only.split(",")}
    results = []
    with tempfile.TemporaryDirectory(prefix="arcloop-bench-") as name:
        for rows in map(int, given.rows.split(",")):
            workload = make(Path(name), rows, workers=given.workers)
            before = _in_process(workload, given.seconds)
            for server, start in servers.items():
                measured = _measure(start, workload, Path(name), given.seconds)
                after = _in_process(workload, given.seconds)
                # Before and after each server, since the load of the machine changes over time.
                bound = (before + after) / 2
                results += [
                    {"rows": rows, "server": server, "bound": bound, **found} for found in measured
                ]
                before = after
            shutil.rmtree(workload.unpacked.parent)
    print(json.dumps(results))


def _servers(peers: str | None) -> dict[str, Start]:
    found: dict[str, Start] = {OURS: _own(FastApiServer), "torchserve": _own(TorchServe)}
    if peers:
        found["litserve"] = _litserve(peers)
        found["kserve"] = _kserve(peers)
    return found


def _measure(start: Start, workload: Workload, folder: Path, seconds: float) -> list[dict]:  # type: ignore[type-arg]
    found = []
    with start(workload, Path(tempfile.mkdtemp(dir=folder))) as server:
        bodies = workload.write_bodies(folder / "bodies.json", server.bodies)
        for clients in _CLIENTS:
            command = [sys.executable, str(_HERE / "load.py"), str(server.port), server.path,
                       str(bodies), str(clients), str(seconds)]  # fmt: skip
            before = _cpu_seconds(server.pid)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result = json.loads(done.stdout)
            spent = 1000 * (_cpu_seconds(server.pid) - before) / result.pop("requests")
            found.append({"clients": clients, **result, "cpu_ms": spent})
    return found


def _cpu_seconds(pid: int) -> float:
    """CPU time of a server's processes, which depends little on the load of the machine."""
    first = psutil.Process(pid)
    times = [one.cpu_times() for one in (first, *first.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def _in_process(workload: Workload, seconds: float) -> float:
    """Images per second of calls of the predictor without a server, in a separate process."""
    code = (
        "import sys, time, json, base64, yaml; from pathlib import Path\n"
        "from arcloop_runtime.predictor import PredictRequest, Predictor\n"
        "settings = yaml.safe_load(Path('model-config.yaml').read_bytes())\n"
        "predictor = Predictor(Path('.'), settings['handler'])\n"
        "bodies = json.load(open(sys.argv[1]))['bodies']\n"
        "requests = [PredictRequest(base64.b64decode(b)) for b in bodies]\n"
        "size = settings['batchSize']\n"
        "def measure(until):\n"
        "    done = 0\n"
        "    while time.perf_counter() < until:\n"
        "        start = done % len(requests)\n"
        "        done += len(predictor.predict(requests[start:start + size]))\n"
        "    return done\n"
        "measure(time.perf_counter() + 0.5)\n"
        "start = time.perf_counter(); done = measure(start + float(sys.argv[2]))\n"
        "print(done / (time.perf_counter() - start))\n"
    )
    bodies = workload.write_bodies(workload.unpacked.parent / "bodies.json", "raw")
    command = [sys.executable, "-W", "ignore", "-c", code, str(bodies), str(seconds)]
    done = subprocess.run(
        command, cwd=workload.unpacked, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _own(kind: type[ServerProcess]) -> Start:
    @contextlib.contextmanager
    def start(workload: Workload, folder: Path) -> Iterator[RunningServer]:
        with kind(workload.settings, workload.archive, folder) as server:
            server.wait_until_ready()
            url = urlsplit(server.endpoint.url)
            yield RunningServer(url.port or 80, url.path, server.process.pid)

    return start


def _litserve(python: str) -> Start:
    def command(workload: Workload) -> list[str]:
        settings = workload.settings
        given = (workload.unpacked, settings.inference_port, settings.batch_size)
        return [python, str(_HERE / "litserve_server.py"), *map(str, given)]

    return _foreign(command, lambda _: "/predict", bodies="one")


def _kserve(python: str) -> Start:
    def command(workload: Workload) -> list[str]:
        settings = workload.settings
        given = (workload.unpacked, settings.inference_port, settings.name)
        return [python, str(_HERE / "kserve_server.py"), *map(str, given)]

    return _foreign(command, lambda w: f"/v1/models/{w.settings.name}:predict", bodies="instances")


def _foreign(
    command: Callable[[Workload], list[str]], path: Callable[[Workload], str], *, bodies: str
) -> Start:
    @contextlib.contextmanager
    def start(workload: Workload, folder: Path) -> Iterator[RunningServer]:
        with open(folder / "log.txt", "w") as log:
            process = subprocess.Popen(
                command(workload), cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        server = RunningServer(
            workload.settings.inference_port, path(workload), process.pid, bodies
        )
        try:
            sent = workload.write_bodies(folder / "bodies.json", bodies)
            _wait_until_answering(server, json.loads(sent.read_text()), process, folder)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return start


def _wait_until_answering(
    server: RunningServer, sent: dict[str, Any], process: subprocess.Popen[bytes], folder: Path
) -> None:
    deadline = time.monotonic() + 120
    last = "no response"
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.suppress(OSError, http.client.HTTPException):
            body = base64.b64decode(sent["bodies"][0])
            connection.request("POST", server.path, body, sent["headers"])
            response = connection.getresponse()
            last = f"{response.status} {response.read()!r}"
            if response.status == 200:
                return
        connection.close()
        time.sleep(0.2)
    raise RuntimeError(f"{last}\n{(folder / 'log.txt').read_text()[-2000:]}")


if __name__ == "__main__":
    main()

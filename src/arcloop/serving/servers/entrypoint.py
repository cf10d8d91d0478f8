"""Runs one server in the foreground: the entry point of the container and of local servers.

    entrypoint.py {torchserve,fastapi} --config DIR --store DIR --scratch DIR [--parent PID]
    entrypoint.py ready PORT NAME WORKERS

`ready` is the readiness probe of a TorchServe pod: exit code 0 if every worker is READY.

The module imports only the standard library, so that Kubernetes can run the probe with
`python -I -S`. The server's config names one archive, so a restarted pod serves the same version,
even if another version has become live in the meantime.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG_FILES = {"torchserve": "config.properties", "fastapi": "http-server.json"}
"""Server -> name of its config file."""
THUMBNAILS = "thumbnails"
WORK_FOLDER = "arcloop"
"""Folder in the scratch folder for logs, temporary files and unpacked archives."""
CONFIG_VARIABLE = "ARCLOOP_SERVER_CONFIG"
ARCHIVE_VARIABLE = "ARCLOOP_SERVER_ARCHIVE"
"""Environment variables that the worker processes of the FastAPI server read."""
_POLL_SECONDS = 0.2
_PROBE_TIMEOUT_SECONDS = 4
_GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL after the parent process has ended."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    arguments = _parse_arguments(argv)
    if arguments.command == "ready":
        fault = torchserve_fault(arguments.port, arguments.name, arguments.workers)
        print(fault or "ready")
        return 1 if fault else 0
    is_torchserve = arguments.command == "torchserve"
    config = arguments.config.resolve() / CONFIG_FILES[arguments.command]
    try:
        text = config.read_text(encoding="utf-8")
        if is_torchserve:
            (name,) = re.findall(r"^load_models=.*=(.+)$", text, re.MULTILINE)
        else:
            name = json.loads(text)["archive"]
        archive = (arguments.store / name).resolve(strict=True)
    except (OSError, ValueError, KeyError) as cause:
        print(f"error: cannot serve: {cause or type(cause)}", file=sys.stderr)
        print("  remedy: check that the mounted model store contains the archive", file=sys.stderr)
        return 1
    from arcloop.serving.servers.members import find_member_fault  # not importable by the probe

    if fault := find_member_fault(archive):
        print(f"error: cannot serve {archive.name}: {fault}", file=sys.stderr)
        print("  remedy: deploy the run again", file=sys.stderr)
        return 1
    parent = arguments.parent
    if parent is not None:
        threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    work = arguments.scratch.resolve() / WORK_FOLDER
    shutil.rmtree(work, ignore_errors=True)  # left by an earlier container of the same pod
    work.mkdir(parents=True)
    # By default, idle OpenMP threads busy-wait and take CPU time from the HTTP server.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    code = run_torchserve(config, work) if is_torchserve else run_fastapi(config, archive, work)
    if parent is not None and os.getppid() != parent:
        os.killpg(0, signal.SIGKILL)
    return code


def _parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="entrypoint.py", description="Run a server.")
    commands = parser.add_subparsers(dest="command", required=True)
    for server in CONFIG_FILES:
        command = commands.add_parser(server)
        for name in ("config", "store", "scratch"):
            command.add_argument(f"--{name}", type=Path, required=True)
        command.add_argument("--parent", type=int)
    ready = commands.add_parser("ready")
    ready.add_argument("port", type=int)
    ready.add_argument("name")
    ready.add_argument("workers", type=int)
    return parser.parse_args(argv)


def end_with_parent(parent: int) -> None:
    """End this process group when the parent process has ended, even if it was killed.

    This process must be the leader of its process group.

    Args:
        parent: Process id of the parent.
    """
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


def run_torchserve(config: Path, work: Path) -> int:
    """Run TorchServe until SIGTERM, then stop it.

    `ts.model_server` does not forward SIGTERM to the Java front end, which must be stopped with
    `--stop`.
    """
    logs, temporary = work / "logs", work / "tmp"
    for folder in (logs, temporary):
        folder.mkdir()
    os.environ.update(
        LOG_LOCATION=str(logs), METRICS_LOCATION=str(logs), TEMP=str(temporary),
        TMPDIR=str(temporary),
    )  # fmt: skip
    os.environ.pop("TS_CONFIG_FILE", None)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    torchserve = [sys.executable, "-m", "ts.model_server"]
    start = [*torchserve, "--start", "--foreground", "--ncs", "--ts-config", str(config)]
    stop = [*torchserve, "--stop", "--foreground"]
    server = subprocess.Popen(start, cwd=work)
    while server.poll() is None:
        if stopping.wait(_POLL_SECONDS):  # repeat `stop`, which a starting server ignores
            subprocess.run(stop, cwd=work, stdout=subprocess.DEVNULL, check=False)
            time.sleep(_POLL_SECONDS)
    return server.returncode


def run_fastapi(config: Path, archive: Path, work: Path) -> int:
    """Run the FastAPI server until SIGTERM; it answers all requests that it has accepted by then.

    Like TorchServe, the server runs the code in the archive, so both servers give the same answers.
    The demo page shows the thumbnails in the folder `THUMBNAILS` next to the config, if it exists.
    """
    import uvicorn

    from arcloop.serving.servers.limits import LimitedProtocol

    values = json.loads(config.read_bytes())
    # uvicorn raises SIGTERM again after its shutdown. The default handler would end the process
    # before the unpacked archive is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["TMPDIR"] = str(work)
    metrics = work / "metrics"
    metrics.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    if values["metrics_host"] is not None:
        # A separate port, which a network policy can restrict to the scraper. Imported here,
        # because prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported.
        import prometheus_client as prometheus
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = prometheus.CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        prometheus.start_http_server(values["metrics_port"], values["metrics_host"], registry)
    with tempfile.TemporaryDirectory(prefix="archive-", dir=work) as unpacked:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(unpacked)
        os.environ[CONFIG_VARIABLE], os.environ[ARCHIVE_VARIABLE] = str(config), unpacked
        uvicorn.run(
            "arcloop.serving.servers.fastapi_app:create_app",
            factory=True,
            app_dir=unpacked,  # makes the archive's copy of arcloop.runtime importable
            host=values["host"],
            port=values["inference_port"],
            workers=values["workers"],
            access_log=False,
            http=LimitedProtocol,
            proxy_headers=False,  # no answer depends on the client's address
            server_header=False,
            timeout_graceful_shutdown=int(values["response_timeout_s"]),
        )
    return 0


def send_request(method: str, url: str, timeout_s: float, *content: Any) -> tuple[int, bytes]:
    """Send an HTTP request, not through a proxy; returns the status and body of the response.

    Args:
        method: "GET", "POST", ...
        url: An http URL.
        timeout_s: Time limit for each step of the exchange, in seconds.
        *content: The body and the headers of the request.

    Raises:
        OSError, http.client.HTTPException: There was no valid response.
    """
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request(method, url.removeprefix(f"http://{parts.netloc}"), *content)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def torchserve_fault(port: int, name: str, workers: int) -> str | None:
    """Return why TorchServe is not ready; None if all workers of the model are READY.

    TorchServe's /ping answers "Healthy" even if no worker is alive. The management API reports the
    state of the workers, but listens on the loopback interface only.

    Args:
        port: The management port.
        name: Name of the model.
        workers: Number of workers that the model must have.
    """
    try:
        url = f"http://127.0.0.1:{port}/models/{name}"
        _, described = send_request("GET", url, _PROBE_TIMEOUT_SECONDS)
        statuses = [worker["status"] for worker in json.loads(described)[0]["workers"]]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as cause:
        return f"the management API of TorchServe does not answer: {cause!r}"
    if len(statuses) < workers or set(statuses) != {"READY"}:
        return f"{workers} workers must be READY; their states are {statuses}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python serving/serve.py run_dir=runs/mnist`: deploy a run here and answer until stopped."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from arcloop.cli import report
from arcloop.errors import ResourceError
from arcloop.progress import say
from arcloop.searcher import INDEX, read_index
from client import require_parity
from deploy import deploy
from http_process import HttpServer
from parity import GOLDEN, Golden
from responder import K_HEADER
from server_process import ServerProcess
from settings import DeploySettings, Request, read_request
from torchserve import TorchServe

SERVERS: Mapping[str, type[ServerProcess]] = {"torchserve": TorchServe, "fastapi": HttpServer}
"""The choices of `deploy.server`."""


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted or terminated; returns the exit code, as `arcloop` does."""
    return report(lambda: _serve(read_request(argv)))


def _serve(request: Request) -> int:
    settings = request.settings
    server_class = _server(settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        live = deploy(request.run_dir, settings, force=request.force)
        golden = Golden(
            request.run_dir / GOLDEN,
            read_index(request.run_dir / "index" / INDEX, memory_map=True),
            tolerance=settings.parity_tolerance,
        )
        with (
            tempfile.TemporaryDirectory(prefix="arcloop-serve-") as folder,
            server_class(settings, live.path.parent, Path(folder)) as server,
        ):
            server.wait_until_ready()
            require_parity(server.endpoint, golden, live.version)
            say(f"answering with {live.version}; stop with Ctrl-C, ask with")
            url = server.endpoint.url
            print(f"curl -T IMAGE -H '{K_HEADER}: {settings.default_k}' {url}", flush=True)
            server.wait()
    except KeyboardInterrupt:
        say("stopped")
    return 0


def _server(settings: DeploySettings) -> type[ServerProcess]:
    """Return the chosen server, or the one that needs no Java where there is none."""
    chosen = SERVERS[settings.server]
    try:
        chosen.require()
    except ResourceError as absent:
        say(f"{absent.what}; serving with deploy.server=fastapi instead")
        return HttpServer
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

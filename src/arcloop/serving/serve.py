"""`python serving/serve.py run_dir=runs/mnist`: deploy a run here and answer until stopped.

The run becomes the live version of its model store once a server of it has answered the golden
batch rightly. Where it does not, what was live before stays so, and the command fails.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from arcloop.display.terminal import say
from arcloop.errors import ArcloopError, ResourceError, report_errors
from arcloop.runtime.responder import K_HEADER
from arcloop.serving.deploy import candidate, put_live
from arcloop.serving.servers import thumbnails
from arcloop.serving.servers.client import require_parity, stored_answers
from arcloop.serving.servers.http_process import HttpServer
from arcloop.serving.servers.http_server import THUMBNAILS
from arcloop.serving.servers.server_process import ServerProcess
from arcloop.serving.servers.torchserve import TorchServe
from arcloop.serving.settings import DeploySettings, Request, read_request

SERVERS: Mapping[str, type[ServerProcess]] = {"torchserve": TorchServe, "fastapi": HttpServer}
"""The choices of `deploy.server`."""


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted or terminated; returns the exit code, as `arcloop` does."""
    return report_errors(lambda: _serve(read_request(argv)))


def _serve(request: Request) -> int:
    server_class = _server(request.settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as running:
        try:
            server = _start(request, server_class, running)
            url = server.endpoint.url
            say(f"stop with Ctrl-C; a page to try it is at {server.page}" if server.page
                else "stop with Ctrl-C")  # fmt: skip
            print(f"curl -T IMAGE -H '{K_HEADER}: {request.settings.default_k}' {url}", flush=True)
            server.wait()
        except KeyboardInterrupt:
            say("stopped")
    return 0


def _start(
    request: Request, server_class: type[ServerProcess], running: contextlib.ExitStack
) -> ServerProcess:
    """Start a server of the run, and make the run live once it answers rightly.

    Args:
        request: Which run, and how.
        server_class: Which server.
        running: Ends the server when it is closed.

    Raises:
        ArcloopError: It does not come to answer rightly; what was live is so still.
    """
    settings = request.settings
    with candidate(request.run_dir, settings, force=request.force) as proven:
        live = proven.store.live()
        try:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="arcloop-")))
            if server_class is HttpServer:
                thumbnails.write(request.run_dir, settings.thumbnails, folder / THUMBNAILS)
            server = running.enter_context(server_class(settings, proven.version.path, folder))
            server.wait_until_ready()
            golden = stored_answers(proven.unpacked, settings.parity_tolerance)
            require_parity(server.endpoint, golden, proven.version.version)
        except ArcloopError:
            say(f"still live: {live.version if live else 'nothing'}")
            raise
        put_live(proven.store, proven.version.version, settings)
    say(f"live, and answering: {proven.version.version}")
    return server


def _server(settings: DeploySettings) -> type[ServerProcess]:
    """Return the chosen server, or the one that needs no Java where there is none."""
    chosen = SERVERS[settings.server]
    try:
        chosen.require()
    except ResourceError as absent:
        say(f"{absent.what}; serving with deploy.server=fastapi instead")
        return HttpServer
    return chosen

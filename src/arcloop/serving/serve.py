"""`arcloop serve run_dir=runs/mnist`: serve a run on this machine until stopped.

The run becomes the live version of its model store after its server has passed the parity check. If
the check fails, the command fails and the live version is unchanged.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ResourceError, report_errors
from arcloop.runtime.predictor import K_HEADER
from arcloop.serving.deploy import DeployArguments, activate_version, parse_arguments, stage
from arcloop.serving.servers.client import load_golden_batch, require_parity
from arcloop.serving.servers.entrypoint import THUMBNAILS
from arcloop.serving.servers.fastapi_server import FastApiServer
from arcloop.serving.servers.server_process import ServerProcess
from arcloop.serving.servers.thumbnails import write_thumbnails
from arcloop.serving.servers.torchserve import TorchServe
from arcloop.serving.settings import DeploySettings

SERVERS: Mapping[str, type[ServerProcess]] = {
    server.name: server for server in (TorchServe, FastApiServer)
}
"""Values of `deploy.server`."""


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted or terminated; returns the exit code."""
    return report_errors(lambda: _serve(parse_arguments(argv)))


def _serve(arguments: DeployArguments) -> int:
    server_class = _choose_server(arguments.settings)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as running:
        try:
            server = _start(arguments, server_class, running)
            hint = f"; try the model in a browser at {server.page}" if server.page else ""
            print_line(f"stop with Ctrl-C{hint}")
            k, url = arguments.settings.default_k, server.endpoint.url
            print(f"curl -T IMAGE -H '{K_HEADER}: {k}' {url}", flush=True)
            server.wait()
        except KeyboardInterrupt:
            print_line("stopped")
    return 0


def _start(
    arguments: DeployArguments, server_class: type[ServerProcess], running: contextlib.ExitStack
) -> ServerProcess:
    """Start a server of the run, and make the run live after the server passes the parity check.

    Args:
        arguments: The run and its settings.
        server_class: The server to start.
        running: The server is stopped when this stack is closed.

    Raises:
        ArcloopError: The server does not start or fails the parity check; the live version is
            unchanged.
    """
    settings = arguments.settings
    with stage(arguments.run_dir, settings, force=arguments.force) as staged:
        live = staged.store.live()
        try:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="arcloop-")))
            if server_class is FastApiServer:
                write_thumbnails(arguments.run_dir, settings.thumbnails, folder / THUMBNAILS)
            server = running.enter_context(server_class(settings, staged.version.path, folder))
            server.wait_until_ready()
            golden = load_golden_batch(staged.unpacked, settings.parity_tolerance)
            require_parity(server.endpoint, golden, staged.version.version)
        except ArcloopError:
            print_line(f"still live: {live.version if live else 'no version'}")
            raise
        activate_version(staged.store, staged.version.version, settings)
    print_line(f"live and serving: {staged.version.version}")
    return server


def _choose_server(settings: DeploySettings) -> type[ServerProcess]:
    """Return the configured server, or the FastAPI server if there is no Java for TorchServe."""
    chosen = SERVERS[settings.server]
    try:
        chosen.require()
    except ResourceError as cause:
        print_line(f"{cause.what}; serving with deploy.server=fastapi instead")
        return FastApiServer
    return chosen

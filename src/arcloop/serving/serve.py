"""`arcloop serve run_dir=runs/mnist`: serve a run on this machine until stopped.

The run becomes the live version of its model store after its server has passed the parity check. If
the check fails, the command fails and the live version is unchanged.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from arcloop import artifacts
from arcloop.data import Store
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ArtifactError, ResourceError, report_errors
from arcloop.pipeline.chains import find_store
from arcloop.runtime.predictor import K_HEADER
from arcloop.serving.deploy import DeployArguments, activate_version, parse_arguments, stage
from arcloop.serving.servers.client import require_parity
from arcloop.serving.servers.entrypoint import THUMBNAILS
from arcloop.serving.servers.process import FastApiServer, ServerProcess, TorchServe

SERVERS: Mapping[str, type[ServerProcess]] = {
    server.name: server for server in (TorchServe, FastApiServer)
}
"""Values of `deploy.server`."""
_THUMBNAIL_SIDE = 64
_THUMBNAIL_QUALITY = 85
_BATCH = 1024


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted or terminated; returns the exit code."""
    return report_errors(lambda: _serve(parse_arguments(argv)))


def _serve(arguments: DeployArguments) -> int:
    """Start a server of the run, make the run live after the parity check, and wait for the end."""
    settings = arguments.settings
    server_class = SERVERS[settings.server]
    try:
        server_class.require()
    except ResourceError as cause:
        print_line(f"{cause.what}; serving with deploy.server=fastapi instead")
        server_class = FastApiServer
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # `running` stops the server at its end. The lock of the store is released earlier, when the
    # inner `with` block ends.
    with contextlib.ExitStack() as running, contextlib.suppress(KeyboardInterrupt):
        with stage(arguments.run_dir, settings, force=arguments.force) as staged:
            live = staged.store.live()
            try:
                folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="arcloop-")))
                if server_class is FastApiServer:
                    write_thumbnails(arguments.run_dir, settings.thumbnails, folder / THUMBNAILS)
                server = running.enter_context(server_class(settings, staged.version.path, folder))
                server.wait_until_ready()
                require_parity(server.endpoint, staged.golden, staged.version.version)
            except ArcloopError:
                print_line(f"still live: {live.version if live else 'no version'}")
                raise
            activate_version(staged.store, staged.version.version, settings)
        print_line(f"live and serving: {staged.version.version}")
        url = server.endpoint.url
        page = f"; try the model in a browser at {urllib.parse.urljoin(url, '/')}"
        print_line(f"stop with Ctrl-C{page if server_class is FastApiServer else ''}")
        print(f"curl -T IMAGE -H '{K_HEADER}: {settings.default_k}' {url}", flush=True)
        server.wait()
    print_line("stopped")
    return 0


def write_thumbnails(run_dir: Path, max_rows: int, folder: Path) -> None:
    """Write thumbnails of a run's gallery for the demo page, or print why there are none.

    They are made from the store of the run when a local server starts. Archives do not contain
    them, because an archive must not depend on the machine that made it, and a gallery of faces
    must not be published with the model.

    Args:
        run_dir: A finished run.
        max_rows: Largest gallery with thumbnails.
        folder: Folder to write, with an image ROW.png or ROW.jpg for each gallery row.

    Raises:
        ArtifactError: The run's store is damaged.
    """
    rows = artifacts.read(run_dir / "index", "index").info["rows"]
    if rows > max_rows:
        print_line(
            f"no thumbnails on the page: {rows:,} gallery rows, deploy.thumbnails={max_rows:,}"
        )
        return
    try:
        store = Store.open(find_store(run_dir))
    except ArtifactError:
        store = None
    if store is None or store.rows("gallery") != rows:
        print_line("no thumbnails on the page: the store of the run's gallery was not found")
        return
    folder.mkdir()
    row = 0
    for images_NHWC, _ in store.batches("gallery", _BATCH):
        for image_HWC in images_NHWC:
            # PNG is small and lossless for grey images.
            grey = image_HWC.shape[-1] == 1
            image = Image.fromarray(image_HWC[..., 0] if grey else image_HWC)
            image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
            image.save(folder / f"{row}{'.png' if grey else '.jpg'}", quality=_THUMBNAIL_QUALITY)
            row += 1

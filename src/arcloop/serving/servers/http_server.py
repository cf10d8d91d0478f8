"""`python serving/http_server.py MODEL_STORE`: the second server. FastAPI, and no Java.

It unpacks the live version, as http-server.json in the store says, and serves it with the code that
is archived in it, the same that TorchServe runs: same request, same answer. A thumbnails.npz beside
the config, where there is one, is for the page.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from pathlib import Path

import uvicorn

CONFIG = "http-server.json"
THUMBNAILS = "thumbnails.npz"
UNPACKED = "ARCLOOP_UNPACKED"


def main(store: Path) -> None:
    """Serve a model store's live version until SIGTERM; what was asked by then is answered."""
    config = json.loads((store / CONFIG).read_bytes())
    # uvicorn raises SIGTERM again when it has drained; by default that would leave the folder.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="arcloop-http-") as folder:
        unpacked = Path(folder)
        with zipfile.ZipFile(store / config["archive"]) as packed:
            packed.extractall(unpacked / "archive")
        (unpacked / CONFIG).write_text(json.dumps(config))
        if (store / THUMBNAILS).exists():
            shutil.copyfile(store / THUMBNAILS, unpacked / THUMBNAILS)
        # Threads of a batch that is done would spin for the next one, on the front end's CPU.
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        os.environ[UNPACKED] = folder  # workers are processes of their own
        apart = config.get("metrics_host")
        if apart or config["workers"] > 1:
            (unpacked / "metrics").mkdir()
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(unpacked / "metrics")
        if apart:
            _serve_metrics(apart, config["metrics_port"])
        uvicorn.run(
            "arcloop.serving.servers.http_app:create_app",
            factory=True,
            app_dir=str(unpacked / "archive"),  # its code goes before any other
            host=config["host"],
            port=config["port"],
            workers=config["workers"],
            access_log=False,
            proxy_headers=False,  # nobody asks where a question comes from
            server_header=False,
            timeout_graceful_shutdown=int(config["response_timeout_s"]),
        )


def _serve_metrics(host: str, port: int) -> None:
    """Answer a scraper at a port of its own, which a firewall can tell from the inference port."""
    import prometheus_client as prometheus  # not before the environment says where counts are kept
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = prometheus.CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    prometheus.start_http_server(port, host, registry)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""`python pod.py SERVER --config DIR --store DIR --scratch DIR`: the server of a pod, foreground.

The first process of the container that serving/Dockerfile makes. It needs nothing but Python's own
library and the server: the config was made and checked by deploy.py and names one archive, so a pod
that is started again serves the same version, whatever has become live in the store since.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

PROPERTIES = "config.properties"
HTTP_SERVER = "http-server.json"
SERVERS = ("torchserve", "fastapi")
_POLL_S = 0.2


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM; returns the server's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=SERVERS)
    for name in ("config", "store", "scratch"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args(argv)
    config = given.config / (PROPERTIES if given.server == "torchserve" else HTTP_SERVER)
    try:
        archive = given.store / archive_of(config)
        with open(archive, "rb"):
            pass
    except (OSError, ValueError, KeyError) as cause:
        print(f"error: cannot serve: {cause or type(cause)}", file=sys.stderr)
        print("  remedy: is the model store mounted, and the archive in it?", file=sys.stderr)
        return 1
    scratch = given.scratch.resolve() / "arcloop"
    shutil.rmtree(scratch, ignore_errors=True)  # of a container before this one, in the same pod
    scratch.mkdir(parents=True)
    os.environ["TMPDIR"] = str(scratch)
    if given.server == "torchserve":
        return run_torchserve(config, scratch)
    return run_http_server(config, archive.resolve(), scratch)


def archive_of(config: Path) -> str:
    """Return the file name of the archive that a server's config names.

    Raises:
        OSError, ValueError, KeyError: There is no such config, or it names none.
    """
    text = config.read_text(encoding="utf-8")
    if config.name == HTTP_SERVER:
        return str(json.loads(text)["archive"])
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return values["load_models"].partition("=")[2]


def run_http_server(config: Path, archive: Path, scratch: Path) -> int:
    """Become the second server, which drains on SIGTERM by itself; does not return."""
    store = scratch / "store"  # it wants config and archive in one folder
    store.mkdir()
    shutil.copyfile(config, store / HTTP_SERVER)
    (store / archive.name).symlink_to(archive)
    server = [sys.executable, "-m", "arcloop.serving.servers.http_server", str(store)]
    sys.stdout.flush()
    os.execv(server[0], server)  # noqa: S606 - our own file, by our own Python


def run_torchserve(config: Path, scratch: Path) -> int:
    """Run TorchServe, and stop it on SIGTERM: its first process would not pass that on."""
    logs, temporary = scratch / "logs", scratch / "tmp"
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
    server = subprocess.Popen(start, cwd=scratch)
    while server.poll() is None:
        if stopping.wait(_POLL_S):  # again, should it not have been far enough to be stopped
            subprocess.run([*torchserve, "--stop", "--foreground"], cwd=scratch, check=False)
            time.sleep(_POLL_S)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python serving/roll.py run_dir=runs/mnist`: replace what a running TorchServe answers with.

For a server that `serve.py` started with `deploy.model_api=true`. The archive of the run is loaded
beside the version that answers, and held against the run's stored embeddings at a URL of its own.
Then it takes over, the old version finishes what it was asked, and goes: no request is lost. A
version that does not load or answers wrongly is removed, and the old one never notices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Sequence

from arcloop.display.terminal import say
from arcloop.errors import ArcloopError, ArtifactError, ConfigError, ResourceError, report_errors
from arcloop.serving.deploy import Candidate, candidate, put_live
from arcloop.serving.servers.client import endpoint_of, require_parity, stored_answers
from arcloop.serving.servers.management import Management
from arcloop.serving.settings import DeploySettings, Request, read_request

_POLL_SECONDS = 0.1
_QUIET_SECONDS = 2.0
"""How long the old version must have had nothing to do: requests on their way still reach it."""
_MOST_STARTS = 3


def main(argv: Sequence[str]) -> int:
    """Roll; returns the exit code, as `arcloop` does."""
    return report_errors(lambda: _roll(read_request(argv)))


def _roll(request: Request) -> int:
    settings = request.settings
    if settings.server != "torchserve" or settings.target != "local":
        raise ConfigError(
            "only a TorchServe on this machine can be told to load another version",
            where=f"deploy.server={settings.server}, deploy.target={settings.target}",
            remedy="start a new server and direct requests to it, as deploy=kubernetes does",
        )
    with candidate(request.run_dir, settings, force=request.force) as proven:
        roll(proven, settings)
    return 0


def roll(proven: Candidate, settings: DeploySettings) -> None:
    """Make a running TorchServe answer with another version, and make that version live.

    Args:
        proven: The version, in the model store that the server was started from.
        settings: Ports and limits of the server.

    Raises:
        ArtifactError: The version does not load, or answers wrongly; the server is as before.
        ConfigError: The server may not be asked for this.
        ResourceError: There is no server, or the version is not ready in time.
    """
    management = Management(settings.management_port, settings.name)
    version = proven.version.version
    before = management.default()
    if before is None or before.version != version:
        try:
            _load(management, proven, settings)
            management.set_default(version)
        except BaseException as cause:
            with contextlib.suppress(ArcloopError):
                management.unregister(version)
            if before and isinstance(cause, ArcloopError):
                say(f"still live: {before.version}")
            raise
    put_live(proven.store, version, settings)
    say(f"live, and answering: {version}")
    _drain(management, version, settings.response_timeout_s)


def _load(management: Management, proven: Candidate, settings: DeploySettings) -> None:
    """Have the version loaded beside the one that answers, and hold it to the run's answers."""
    version = proven.version.version
    if management.find(version):  # of a roll that was killed
        management.unregister(version)
    management.register(proven.version.path.name, settings.workers)
    _wait_until_ready(management, version, settings)
    endpoint = dataclasses.replace(endpoint_of(settings), version=version)
    golden = stored_answers(proven.unpacked, settings.parity_tolerance)
    require_parity(endpoint, golden, version)


def _wait_until_ready(management: Management, version: str, settings: DeploySettings) -> None:
    """Wait until every worker holds the model; one that dies on the way would be started for ever.

    Raises:
        ArtifactError: A worker died again and again.
        ResourceError: It takes too long.
    """
    deadline = time.monotonic() + settings.startup_timeout_s
    seen: defaultdict[str, set[int]] = defaultdict(set)
    while time.monotonic() < deadline:
        found = management.find(version)
        if found and found.ready and len(found.workers) == settings.workers:
            return
        for worker, (_, process) in (found.workers if found else {}).items():
            seen[worker] |= {process} - {-1}
            if len(seen[worker]) >= _MOST_STARTS:
                raise ArtifactError(
                    f"a worker cannot load {version}: it died {_MOST_STARTS - 1} times",
                    where=f"127.0.0.1:{management.port}",
                    remedy="its own words are in the server's logs, model_log.log",
                )
        time.sleep(_POLL_SECONDS)
    raise ResourceError(
        f"{version} is not ready after {settings.startup_timeout_s} s",
        where=f"127.0.0.1:{management.port}",
        remedy="raise deploy.startup_timeout_s, or see the server's logs",
    )


def _drain(management: Management, version: str, timeout_s: float) -> None:
    """Let the versions before this one finish what they were asked, and remove them.

    TorchServe removes a version at once, and drops what it is at.
    """
    deadline = time.monotonic() + timeout_s + _QUIET_SECONDS
    quiet_since = time.monotonic()
    while time.monotonic() < min(deadline, quiet_since + _QUIET_SECONDS):
        old = [found for found in management.registered() if found.version != version]
        if not old:
            return
        if any(found.pending for found in old):
            quiet_since = time.monotonic()
        time.sleep(_POLL_SECONDS)
    for found in management.registered():
        if found.version != version:
            management.unregister(found.version)
            say(f"no longer loaded: {found.version}")

"""`arcloop roll run_dir=runs/mnist`: replace the version that a running TorchServe serves.

The server must have been started by `arcloop serve` with `deploy.model_api=true`. It loads the new
version while the old one continues to serve. The parity check uses the URL of the new version. Then
the new version becomes the default. The old version answers its queued requests and is
unregistered, so no request fails. If the new version does not load or fails the parity check, it is
unregistered, and the old version stays the default.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence

from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ArtifactError, ConfigError, ResourceError, report_errors
from arcloop.serving.deploy import (
    DeployArguments,
    StagedVersion,
    activate_version,
    parse_arguments,
    stage,
)
from arcloop.serving.servers.client import (
    ManagementClient,
    local_endpoint,
    require_parity,
)
from arcloop.serving.settings import DeploySettings

_POLL_SECONDS = 0.1
_QUIET_SECONDS = 2.0
"""How long the old version's queue must stay empty, because requests may still be in transit."""
_MAX_STARTS = 3


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    return report_errors(lambda: _roll(parse_arguments(argv)))


def _roll(arguments: DeployArguments) -> int:
    settings = arguments.settings
    if settings.server != "torchserve" or settings.target != "local":
        raise ConfigError(
            "only TorchServe on this machine can load another version while it runs",
            where=f"deploy.server={settings.server}, deploy.target={settings.target}",
            remedy="start a new server and direct requests to it, as deploy=kubernetes does",
        )
    with stage(arguments.run_dir, settings, force=arguments.force) as staged:
        roll(staged, settings)
    return 0


def roll(staged: StagedVersion, settings: DeploySettings) -> None:
    """Make a running TorchServe serve another version, and make that version live.

    Args:
        staged: The version, in the model store that the server was started from.
        settings: Ports and limits of the server.

    Raises:
        ArtifactError: The version does not load or fails the parity check; the server is unchanged.
        ConfigError: The server does not allow changes through its management API.
        ResourceError: No server answers, or the version is not ready in time.
    """
    management = ManagementClient(settings.management_port, settings.name)
    version = staged.version.version
    before = management.find()
    if before is None or before.version != version:
        try:
            _load(management, staged, settings)
            management.set_default(version)
        except BaseException as cause:
            with contextlib.suppress(ArcloopError):
                management.unregister(version)
            if before and isinstance(cause, ArcloopError):
                print_line(f"still live: {before.version}")
            raise
    activate_version(staged.store, version, settings)
    print_line(f"live and serving: {version}")
    _drain(management, version, settings.response_timeout_s)


def _load(management: ManagementClient, staged: StagedVersion, settings: DeploySettings) -> None:
    """Load the version in addition to the current default, and run the parity check on it."""
    version = staged.version.version
    if management.find(version):  # left by a roll that was killed
        management.unregister(version)
    management.register(staged.version.path.name, settings.workers)
    _wait_until_ready(management, version, settings)
    require_parity(local_endpoint(settings, version), staged.golden, version)


def _wait_until_ready(management: ManagementClient, version: str, settings: DeploySettings) -> None:
    """Wait until all workers have loaded the model.

    TorchServe restarts a failed worker without limit, so repeated failures are detected here.

    Raises:
        ArtifactError: A worker died repeatedly.
        ResourceError: The version is not ready in time.
    """
    deadline = time.monotonic() + settings.startup_timeout_s
    processes: defaultdict[str, set[int]] = defaultdict(set)
    while time.monotonic() < deadline:
        found = management.find(version)
        if found and found.ready and len(found.workers) == settings.workers:
            return
        for worker, (_, process) in (found.workers if found else {}).items():
            processes[worker] |= {process} - {-1}
            if len(processes[worker]) >= _MAX_STARTS:
                raise ArtifactError(
                    f"a worker cannot load {version}: it died {_MAX_STARTS - 1} times",
                    where=f"127.0.0.1:{management.port}",
                    remedy="the reason is in the server's model_log.log",
                )
        time.sleep(_POLL_SECONDS)
    raise ResourceError(
        f"{version} is not ready after {settings.startup_timeout_s} s",
        where=f"127.0.0.1:{management.port}",
        remedy="raise deploy.startup_timeout_s, or see the server's logs",
    )


def _drain(management: ManagementClient, version: str, timeout_s: float) -> None:
    """Wait until the other versions have answered their queued requests, then unregister them.

    TorchServe unregisters a version at once and drops the requests in its queue.
    """
    deadline = time.monotonic() + timeout_s + _QUIET_SECONDS
    quiet_since = time.monotonic()
    while time.monotonic() < min(deadline, quiet_since + _QUIET_SECONDS):
        old = [found for found in management.versions() if found.version != version]
        if not old:
            return
        if any(found.pending for found in old):
            quiet_since = time.monotonic()
        time.sleep(_POLL_SECONDS)
    for found in management.versions():
        if found.version != version:
            management.unregister(found.version)
            print_line(f"unloaded: {found.version}")

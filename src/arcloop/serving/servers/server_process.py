"""A server in separate processes: start it, wait until it is ready, stop it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.serving.servers.client import local_endpoint
from arcloop.serving.settings import DeploySettings

_POLL_SECONDS = 0.1
_STOP_SECONDS = 60.0


class ServerProcess(ABC):
    """A server of one archive that runs during the `with` block.

    It also ends if this process ends without leaving the block; see `entrypoint.ParentWatch`.

    Args:
        settings: Addresses, ports and time limits.
        archive: The archive to serve, in its model store.
        folder: An existing folder for config, logs and temporary files.

    Attributes:
        name: The server's name in `deploy.server`.
        endpoint: The URL that answers predictions.

    Raises:
        ResourceError: A program that the server needs is not installed.
        ConfigError: A port is in use.
    """

    name: ClassVar[str]

    def __init__(self, settings: DeploySettings, archive: Path, folder: Path) -> None:
        self.settings, self.archive, self.folder = settings, archive.resolve(), folder.resolve()
        self.endpoint = local_endpoint(settings)

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raise ResourceError if a program that the server needs is not installed."""

    @abstractmethod
    def write_config(self) -> None:
        """Write the server's config to `folder`."""

    @abstractmethod
    def ports(self) -> Mapping[str, str]:
        """Return the settings that name a listening port, with the address it listens on."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether every worker answers."""

    @abstractmethod
    def load_failure(self) -> str | None:
        """Return why a worker could not load the archive; None if no worker has failed."""

    @property
    def page(self) -> str | None:
        """URL of a page to try the model in a browser, if the server has one."""
        return None

    @property
    def log(self) -> Path:
        """File with the server's standard output and standard error."""
        return self.folder / "console.log"

    @property
    def pid(self) -> int:
        """Process id of the first process; all others are its descendants."""
        return self._process.pid

    def __enter__(self) -> Self:
        self.require()
        self._require_free_ports()
        self.write_config()
        command = [
            sys.executable, "-m", "arcloop.serving.servers.entrypoint", self.name,
            f"--config={self.folder}", f"--store={self.archive.parent}",
            f"--scratch={self.folder}", "--exit-with-parent",
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # only this process receives Ctrl-C; it stops the server
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server, and kill its remaining processes."""
        try:
            self.terminate()
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(self._process.pid)
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()

    def terminate(self) -> None:
        """Send SIGTERM; the server answers the requests that it has accepted, then ends."""
        self._process.terminate()

    def wait_until_ready(self) -> None:
        """Wait until every worker answers.

        Raises:
            ArtifactError: A worker cannot load the archive; the message has the worker's reason.
            ResourceError: The server ended, or is not ready in time.
        """
        deadline = time.monotonic() + self.settings.startup_timeout_s
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            if reason := self.load_failure():
                raise ArtifactError(
                    f"the server cannot load the archive: {reason}",
                    where=self.archive,
                    remedy="deploy the run again",
                )
            if ended:
                raise self._error_with_log("the server ended")
            if self.ready():
                return
            time.sleep(_POLL_SECONDS)
        raise self._error_with_log(
            f"the server is not ready after {self.settings.startup_timeout_s} s"
        )

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            ResourceError: Always, since the server should not end by itself.
        """
        self._process.wait()
        raise self._error_with_log("the server ended")

    def _error_with_log(self, what: str) -> ResourceError:
        last = self.log.read_text(errors="replace").splitlines()[-5:]
        return ResourceError(
            "\n    ".join([what, *last]),
            where=self.archive,
            remedy="see the last lines of its log above",
        )

    def _require_free_ports(self) -> None:
        faults = []
        for key, host in self.ports().items():
            port = getattr(self.settings, key)
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as cause:
                    faults.append(f"deploy.{key}={port} on {host}: {cause.strerror}")
        if faults:
            raise ConfigError(
                "\n".join(faults), remedy="choose other ports, or stop the program that uses them"
            )


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return

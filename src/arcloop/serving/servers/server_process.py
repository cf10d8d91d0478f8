"""A server in processes of its own: started, watched until it is ready, and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.serving.servers.client import endpoint_of
from arcloop.serving.settings import DeploySettings

_GUARD = Path(__file__).with_name("guard.py")
_POLL_SECONDS = 0.1
_STOP_SECONDS = 60.0


class ServerProcess(ABC):
    """A server of one archive that runs as long as the `with` block.

    It ends with this process, however that ends; see guard.py.

    Args:
        settings: Addresses, ports and time limits.
        archive: What it serves: the live version of a model store, or one that is to become it.
        folder: An existing folder for its config, logs and temporary files.

    Attributes:
        endpoint: Where it is asked.

    Raises:
        ResourceError: What it needs is not on this machine.
        ConfigError: A port is taken.
    """

    def __init__(self, settings: DeploySettings, archive: Path, folder: Path) -> None:
        self.settings, self.archive, self.folder = settings, archive.resolve(), folder.resolve()
        self.endpoint = endpoint_of(settings)

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raise ResourceError where what the server needs is not on this machine."""

    @abstractmethod
    def configure(self) -> None:
        """Write its config to the folder."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Return the command that starts it and stays in the foreground."""

    @abstractmethod
    def ports(self) -> Mapping[str, str]:
        """Return the settings that name a port it listens on -> the address it listens at."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether every worker answers."""

    @abstractmethod
    def load_failure(self) -> str | None:
        """Return why the archive cannot be loaded, None if nothing speaks against it."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to end."""

    def environment(self) -> Mapping[str, str]:
        """Return the environment of its processes."""
        return os.environ

    @property
    def page(self) -> str | None:
        """Where a person can try it in a browser."""
        return None

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "console.log"

    @property
    def pid(self) -> int:
        """The first of its processes; all others descend from it."""
        return self._process.pid

    def __enter__(self) -> Self:
        self.require()
        self._require_free_ports()
        self.configure()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), *self.command()],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us to turn into an orderly stop
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it; whatever is left of its processes is killed."""
        try:
            self.stop()
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(self._process.pid)
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()

    def terminate(self) -> None:
        """Send SIGTERM to the first process."""
        self._process.terminate()

    def wait_until_ready(self) -> None:
        """Wait until every worker answers.

        Raises:
            ArtifactError: A worker cannot load the archive; the reason is the worker's own.
            ResourceError: It ended, or is not ready in time.
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
                raise self._failed("the server ended")
            if self.ready():
                return
            time.sleep(_POLL_SECONDS)
        raise self._failed(f"the server is not ready after {self.settings.startup_timeout_s} s")

    def wait(self) -> None:
        """Wait as long as it runs.

        Raises:
            ResourceError: It ended by itself.
        """
        self._process.wait()
        raise self._failed("the server ended")

    def _failed(self, what: str) -> ResourceError:
        last = self.log.read_text(errors="replace").splitlines()[-5:]
        return ResourceError(
            "\n    ".join([what, *last]), where=self.archive, remedy="see its last lines above"
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
                "\n".join(faults), remedy="choose other ports, or stop what holds them"
            )


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return

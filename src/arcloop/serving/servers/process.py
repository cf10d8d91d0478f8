"""The servers in separate processes: start, wait until ready, stop."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.serving.servers.client import local_endpoint
from arcloop.serving.servers.config_files import server_configs
from arcloop.serving.servers.entrypoint import WORK_FOLDER, send_request, torchserve_fault
from arcloop.serving.settings import PORTS, DeploySettings

MIN_JAVA = 17
_POLL_SECONDS = 0.1
_STOP_SECONDS = 60.0
_READY_TIMEOUT_SECONDS = 5


class ServerProcess(ABC):
    """A server of one archive that runs during the `with` block.

    It also ends if this process ends without leaving the block; see `end_with_parent`.

    Args:
        settings: Addresses, ports and time limits.
        archive: The archive to serve, in its model store.
        folder: An existing folder for config, logs and temporary files.

    Attributes:
        name: The server's name in `deploy.server`.
        loopback_ports: Settings of the ports that listen on 127.0.0.1.
        endpoint: Sends prediction requests to the server.
        process: The first process; all others are its descendants. After SIGTERM, the FastAPI
            server answers the requests that it has accepted, then ends.
        log: File with the server's standard output and standard error.

    Raises:
        ConfigError: A port is in use.
    """

    name: ClassVar[str]
    loopback_ports: ClassVar[Sequence[str]] = ()

    def __init__(self, settings: DeploySettings, archive: Path, folder: Path) -> None:
        self.settings, self.archive, self.folder = settings, archive.resolve(), folder.resolve()
        self.endpoint = local_endpoint(settings)
        self.log = self.folder / "console.log"

    @staticmethod
    @abstractmethod
    def require() -> None:
        """Raise ResourceError if a program that the server needs is not installed."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether every worker answers."""

    @abstractmethod
    def load_failure(self) -> str | None:
        """Return why a worker could not load the archive; None if no worker has failed."""

    def __enter__(self) -> Self:
        self._require_free_ports()
        for file, text in server_configs(self.settings, self.archive).items():
            (self.folder / file).write_text(text, encoding="utf-8")
        command = [
            sys.executable, "-m", "arcloop.serving.servers.entrypoint", self.name,
            f"--config={self.folder}", f"--store={self.archive.parent}",
            f"--scratch={self.folder}", f"--parent={os.getpid()}",
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # only this process receives Ctrl-C; it stops the server
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server, and kill its remaining processes."""
        try:
            self.process.terminate()
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def wait_until_ready(self) -> None:
        """Wait until every worker answers.

        Raises:
            ArtifactError: A worker cannot load the archive; the message has the worker's reason.
            ResourceError: The server ended, or is not ready in time.
        """
        deadline = time.monotonic() + self.settings.startup_timeout_s
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
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
        self.process.wait()
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
        local = dict.fromkeys(self.loopback_ports, "127.0.0.1")
        for key, host in {"inference_port": self.settings.host, **local}.items():
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


class FastApiServer(ServerProcess):
    """FastAPI under uvicorn; see `ServerProcess`."""

    name = "fastapi"

    @staticmethod
    def require() -> None:
        """Nothing to check: the extra `serving` installs all packages that the server needs."""

    def ready(self) -> bool:
        try:
            url = urllib.parse.urljoin(self.endpoint.url, "/ready")
            return send_request("GET", url, _READY_TIMEOUT_SECONDS)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def load_failure(self) -> str | None:
        pattern = r"^(?:\w+\.)*((?:Archive|Searcher)Error: .*)"
        found = re.findall(pattern, self.log.read_text(), re.MULTILINE)
        return found[-1] if found else None


class TorchServe(ServerProcess):
    """TorchServe; see `ServerProcess`."""

    name = "torchserve"
    loopback_ports = PORTS[1:]

    @staticmethod
    def require() -> None:
        """Check that a Java runtime that can run TorchServe is on PATH or at JAVA_HOME.

        Raises:
            ResourceError: There is none, or it is older than Java 17.
        """
        home = os.environ.get("JAVA_HOME")
        java = f"{home}/bin/java" if home else "java"
        try:
            done = subprocess.run([java, "-version"], capture_output=True, text=True, check=True)
            major = re.search(r'version "(\d+)', done.stderr)
            if major and int(major.group(1)) >= MIN_JAVA:
                return
            fault = f" or newer; this is {done.stderr.splitlines()[0]}"
        except (OSError, subprocess.CalledProcessError):
            fault = ", but Java is not installed"
        raise ResourceError(
            f"TorchServe needs Java {MIN_JAVA}{fault}",
            where=java,
            remedy="install a JRE 17 (Debian: openjdk-17-jre-headless), or set JAVA_HOME",
        )

    def ready(self) -> bool:
        settings = self.settings
        return torchserve_fault(settings.management_port, settings.name, settings.workers) is None

    def load_failure(self) -> str | None:
        """Return why a worker died while loading; TorchServe restarts it without limit."""
        log = self.folder / WORK_FOLDER / "logs" / "model_log.log"
        lines = log.read_text(errors="replace") if log.exists() else ""
        if "Backend worker process died" not in lines:
            return None
        raised = re.findall(r"\b((?:\w+\.)*\w+(?:Error|Exception): .*)", lines)
        own = [line for line in raised if "500 - Unknown exception" not in line]
        return own[-1] if own else "the worker process died"

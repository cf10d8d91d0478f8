"""TorchServe as a server process, and a client of its management API."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arcloop.errors import ConfigError, ResourceError
from arcloop.serving.servers.config_files import torchserve_properties
from arcloop.serving.servers.entrypoint import (
    TORCHSERVE_CONFIG,
    WORK_FOLDER,
    torchserve_fault,
)
from arcloop.serving.servers.server_process import ServerProcess

MIN_JAVA = 17
_MANAGEMENT_TIMEOUT_SECONDS = 30


class TorchServe(ServerProcess):
    """TorchServe, configured by config.properties; see `ServerProcess`."""

    name = "torchserve"

    @staticmethod
    def require() -> None:
        require_java()

    def write_config(self) -> None:
        text = torchserve_properties(self.settings, self.archive)
        (self.folder / TORCHSERVE_CONFIG).write_text(text, encoding="utf-8")

    def ports(self) -> Mapping[str, str]:
        internal = (
            "management_port", "metrics_port", "grpc_inference_port", "grpc_management_port",
        )  # fmt: skip
        return {"inference_port": self.settings.host, **dict.fromkeys(internal, "127.0.0.1")}

    def ready(self) -> bool:
        settings = self.settings
        return torchserve_fault(settings.management_port, settings.name, settings.workers) is None

    def load_failure(self) -> str | None:
        """Return why a worker died while loading; TorchServe restarts it without limit."""
        log = self.folder / WORK_FOLDER / "logs" / "model_log.log"
        try:
            lines = log.read_text(errors="replace")
        except OSError:
            return None
        if "Backend worker process died" not in lines:
            return None
        raised = re.findall(r"\b((?:\w+\.)*\w+(?:Error|Exception): .*)", lines)
        own = [line for line in raised if "500 - Unknown exception" not in line]
        return own[-1] if own else "the worker process died"


def require_java() -> None:
    """Check that a Java runtime that can run TorchServe is on PATH or at JAVA_HOME.

    Raises:
        ResourceError: There is none, or it is older than Java 17.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else "java"
    remedy = "install a JRE 17 (Debian: openjdk-17-jre-headless), or set JAVA_HOME"
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise ResourceError(
            f"TorchServe needs Java {MIN_JAVA}, but Java is not installed",
            where=java,
            remedy=remedy,
        ) from None
    major = re.search(r'version "(\d+)', done.stderr)
    if major is None or int(major.group(1)) < MIN_JAVA:
        raise ResourceError(
            f"TorchServe needs Java {MIN_JAVA} or newer; this is {done.stderr.splitlines()[0]}",
            where=java,
            remedy=remedy,
        )


@dataclass(frozen=True)
class RegisteredVersion:
    """A model version that is registered with TorchServe.

    Attributes:
        version: Name of the version.
        workers: Worker id -> (status, process id); process id -1 means not started yet.
        pending: Number of requests in the version's queue.
    """

    version: str
    workers: Mapping[str, tuple[str, int]]
    pending: int

    @property
    def ready(self) -> bool:
        """Whether there are workers and all of them have loaded the model."""
        return bool(self.workers) and {status for status, _ in self.workers.values()} == {"READY"}


class ManagementClient:
    """Client of TorchServe's management API for one model, on the loopback interface.

    Every method raises ResourceError if the server does not answer. The methods `register`,
    `set_default` and `unregister` raise ConfigError if the server rejects the change.

    Args:
        port: The management port.
        name: Name of the model.
    """

    def __init__(self, port: int, name: str) -> None:
        self.port, self.name = port, name

    def versions(self) -> list[RegisteredVersion]:
        """Return all registered versions, in no particular order."""
        status, described = self._request("GET", self._path("all"))
        return [_parse_version(entry) for entry in described] if status == 200 else []

    def default(self) -> RegisteredVersion | None:
        """Return the version that answers requests without a version."""
        return self._describe(self._path())

    def find(self, version: str) -> RegisteredVersion | None:
        """Return one version; None if it is not registered."""
        return self._describe(self._path(version))

    def register(self, file_name: str, workers: int) -> None:
        """Start loading an archive of the model store; returns before it is loaded.

        A synchronous registration would delay the predictions of other clients for seconds.
        """
        query = urllib.parse.urlencode(
            {
                "url": file_name,
                "model_name": self.name,
                "initial_workers": workers,
                "synchronous": "false",
            }
        )
        self._change("POST", f"/models?{query}")

    def set_default(self, version: str) -> None:
        """Make a version the default, which answers requests without a version."""
        self._change("PUT", self._path(version) + "/set-default")

    def unregister(self, version: str) -> None:
        """Remove a version and end its workers immediately, even during a prediction."""
        self._change("DELETE", self._path(version))

    def _path(self, version: str | None = None) -> str:
        return f"/models/{self.name}" + (f"/{version}" if version else "")

    def _describe(self, path: str) -> RegisteredVersion | None:
        status, described = self._request("GET", path)
        return _parse_version(described[0]) if status == 200 else None

    def _change(self, method: str, path: str) -> None:
        status, answer = self._request(method, path)
        if status >= 300:
            reason = answer.get("message", answer) if isinstance(answer, dict) else answer
            raise ConfigError(
                f"TorchServe rejects {method} {path.partition('?')[0]}: {status}, {reason}",
                where=f"127.0.0.1:{self.port}",
                remedy="start it with deploy.model_api=true and the same deploy.model_store",
            )

    def _request(self, method: str, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=_MANAGEMENT_TIMEOUT_SECONDS
        )
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as cause:
            raise ResourceError(
                f"the management API of TorchServe does not answer: {cause}",
                where=f"127.0.0.1:{self.port}",
                remedy="start a server with `arcloop serve deploy.model_api=true`, same ports",
            ) from None
        finally:
            connection.close()


def _parse_version(described: Mapping[str, Any]) -> RegisteredVersion:
    return RegisteredVersion(
        described["modelVersion"],
        {worker["id"]: (worker["status"], worker["pid"]) for worker in described["workers"]},
        described["jobQueueStatus"]["pendingRequests"],
    )

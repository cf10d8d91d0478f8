"""TorchServe as a server process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from arcloop.errors import ResourceError
from arcloop.serving.servers.management import Management
from arcloop.serving.servers.server_config import PROPERTIES, server_properties
from arcloop.serving.servers.server_process import ServerProcess

JAVA = 17
_STOP_SECONDS = 70  # `torchserve --stop` itself waits up to 60


class TorchServe(ServerProcess):
    """A TorchServe that serves the live version as config.properties says; see `ServerProcess`."""

    @staticmethod
    def require() -> None:
        require_java()

    def configure(self) -> None:
        told = server_properties(self.settings, self.archive)
        (self.folder / PROPERTIES).write_text(told, encoding="utf-8")

    def command(self) -> Sequence[str]:
        return [
            *self._torchserve("--start", "--foreground", "--ncs"),
            "--ts-config", str(self.folder / PROPERTIES),
        ]  # fmt: skip

    def ports(self) -> Mapping[str, str]:
        own = ("management_port", "metrics_port", "grpc_inference_port", "grpc_management_port")
        return {"inference_port": self.settings.host, **dict.fromkeys(own, "127.0.0.1")}

    def environment(self) -> Mapping[str, str]:
        logs, temporary = self.folder / "logs", self.folder / "tmp"
        for folder in (logs, temporary):
            folder.mkdir(exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if key != "TS_CONFIG_FILE"}
        return {
            **inherited,
            "LOG_LOCATION": str(logs),
            "METRICS_LOCATION": str(logs),
            "TEMP": str(temporary),
            "TMPDIR": str(temporary),
            "GOMP_SPINCOUNT": "0",  # threads that wait leave the CPU to the front end
        }

    @property
    def management(self) -> Management:
        """Its management API."""
        return Management(self.settings.management_port, self.settings.name)

    def ready(self) -> bool:
        """Whether every worker holds the model; /ping would say so while none does."""
        try:
            found = self.management.default()
        except ResourceError:
            return False  # the front end is not up
        return found is not None and found.ready and len(found.workers) == self.settings.workers

    def load_failure(self) -> str | None:
        """Return why a worker died while loading, from its log; it would be started for ever."""
        try:
            lines = (self.folder / "logs" / "model_log.log").read_text(errors="replace")
        except OSError:
            return None
        if "Backend worker process died" not in lines:
            return None
        raised = re.findall(r"\b((?:\w+\.)*\w+(?:Error|Exception): .*)", lines)
        own = [line for line in raised if "500 - Unknown exception" not in line]
        return own[-1] if own else "it died"

    def stop(self) -> None:
        """Stop the front end and its workers; SIGTERM to the first process would not."""
        subprocess.run(
            self._torchserve("--stop", "--foreground"),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_STOP_SECONDS,
            check=False,
        )

    def _torchserve(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "ts.model_server", *arguments]


def require_java() -> None:
    """Check that a Java runtime that can run TorchServe is on PATH or at JAVA_HOME.

    Raises:
        ResourceError: There is none, or it is older than 17.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else "java"
    remedy = "install a JRE 17 (Debian: openjdk-17-jre-headless), or set JAVA_HOME"
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        raise ResourceError(
            f"TorchServe needs Java {JAVA}, and there is no Java here", where=java, remedy=remedy
        ) from None
    major = re.search(r'version "(\d+)', told)
    if major is None or int(major.group(1)) < JAVA:
        raise ResourceError(
            f"TorchServe needs Java {JAVA} or newer; this is {told.splitlines()[0]}",
            where=java,
            remedy=remedy,
        )

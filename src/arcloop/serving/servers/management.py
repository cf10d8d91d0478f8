"""TorchServe's management API, as far as a roll needs it."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arcloop.errors import ConfigError, ResourceError

_TIMEOUT_S = 30


@dataclass(frozen=True)
class Registered:
    """A version that TorchServe holds.

    Attributes:
        version: Which.
        workers: Id of each of its workers -> (status, process id); -1 is no process yet.
        pending: Requests that wait for it.
    """

    version: str
    workers: Mapping[str, tuple[str, int]]
    pending: int

    @property
    def ready(self) -> bool:
        """Whether every worker holds the model."""
        return bool(self.workers) and {status for status, _ in self.workers.values()} == {"READY"}


class Management:
    """Asks the management API of one model, on this machine's loopback.

    Args:
        port: Where it listens.
        name: Of the model.
    """

    def __init__(self, port: int, name: str) -> None:
        self.port, self.name = port, name

    def registered(self) -> list[Registered]:
        """Return every version there is, in no order.

        Raises:
            ResourceError: Nothing answers.
        """
        status, described = self._call("GET", self._path("all"))
        return [_read(entry) for entry in described] if status == 200 else []

    def default(self) -> Registered | None:
        """Return the version that answers where a request names none.

        Raises:
            ResourceError: Nothing answers.
        """
        status, described = self._call("GET", self._path())
        return _read(described[0]) if status == 200 else None

    def find(self, version: str) -> Registered | None:
        """Return one version; None if it is not registered.

        Raises:
            ResourceError: Nothing answers.
        """
        status, described = self._call("GET", self._path(version))
        return _read(described[0]) if status == 200 else None

    def register(self, file_name: str, workers: int) -> None:
        """Have an archive of the model store loaded; returns before it is.

        Waiting for it in this request would hold up the requests of others for seconds.

        Raises:
            ConfigError: The server may not be asked for this, or refuses the archive.
            ResourceError: Nothing answers.
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
        """Have a version answer the requests that name none; raises as `register` does."""
        self._change("PUT", self._path(version) + "/set-default")

    def unregister(self, version: str) -> None:
        """Remove a version and end its workers, whatever they are at; raises as `register` does."""
        self._change("DELETE", self._path(version))

    def _path(self, version: str | None = None) -> str:
        return f"/models/{self.name}" + (f"/{version}" if version else "")

    def _change(self, method: str, path: str) -> None:
        status, told = self._call(method, path)
        if status >= 300:
            reason = told.get("message", told) if isinstance(told, dict) else told
            raise ConfigError(
                f"TorchServe refuses {method} {path.partition('?')[0]}: {status}, {reason}",
                where=f"127.0.0.1:{self.port}",
                remedy="start it with deploy.model_api=true, from the same deploy.model_store",
            )

    def _call(self, method: str, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as cause:
            raise ResourceError(
                f"no TorchServe's management answers: {cause}",
                where=f"127.0.0.1:{self.port}",
                remedy="start one by `serve.py deploy.model_api=true`, with the same ports",
            ) from None
        finally:
            connection.close()


def _read(described: Mapping[str, Any]) -> Registered:
    return Registered(
        described["modelVersion"],
        {worker["id"]: (worker["status"], worker["pid"]) for worker in described["workers"]},
        described["jobQueueStatus"]["pendingRequests"],
    )

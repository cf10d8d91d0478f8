"""Clients of a running server: predictions with their parity check, TorchServe's management API."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.runtime.golden_batch import GoldenBatch
from arcloop.runtime.predictor import K_HEADER
from arcloop.serving.servers.config_files import url_host
from arcloop.serving.servers.entrypoint import send_request
from arcloop.serving.settings import DeploySettings

_CONNECTIONS = 8
_MANAGEMENT_TIMEOUT_SECONDS = 30
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)


class InferenceEndpoint(Protocol):
    """A model that answers prediction requests over HTTP at `url`.

    `predict` sends an encoded image and returns the status and the JSON body of the response. It
    raises OSError, http.client.HTTPException or ValueError if there was no valid response.
    """

    @property
    def url(self) -> str: ...

    def predict(self, image: bytes, k: int) -> tuple[int, Any]: ...


@dataclass(frozen=True)
class Endpoint:
    """A model on a server that this machine reaches without a proxy; see `InferenceEndpoint`.

    Attributes:
        url: The URL that answers predictions.
        timeout_s: Time limit for a response, in seconds.
    """

    url: str
    timeout_s: float

    def predict(self, image: bytes, k: int) -> tuple[int, Any]:
        headers = {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
        status, body = send_request("POST", self.url, self.timeout_s, image, headers)
        return status, json.loads(body)


def local_endpoint(settings: DeploySettings, version: str | None = None) -> Endpoint:
    """Return the endpoint of a server on this machine; by default, of the server's live version."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    host = url_host(loopback.get(settings.host, settings.host))
    path = f"/predictions/{settings.name}" + (f"/{version}" if version else "")
    return Endpoint(f"http://{host}:{settings.inference_port}{path}", settings.response_timeout_s)


def require_parity(endpoint: InferenceEndpoint, golden: GoldenBatch, version: str) -> None:
    """Send the golden batch to a running server and compare its answers with those of the run.

    Args:
        endpoint: The server.
        golden: The golden batch.
        version: The version that must answer.

    Raises:
        ArtifactError: The server does not answer, or another version answers, or an answer differs.
    """
    if mismatch := _find_mismatch(endpoint, golden, version):
        raise ArtifactError(
            f"the server fails the parity check: {mismatch}",
            where=endpoint.url,
            remedy="earlier versions are unchanged; see `arcloop versions list`",
        )


def _find_mismatch(endpoint: InferenceEndpoint, golden: GoldenBatch, version: str) -> str | None:
    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            images = golden.encoded_images()
            responses = list(pool.map(lambda image: endpoint.predict(image, golden.k), images))
    except _NO_ANSWER as cause:
        return f"it does not answer: {cause}"
    for status, answer in responses:
        if status != 200:
            return f"status {status}: {answer}"
        if answer["model"]["version"] != version:
            return f"it answers with version {answer['model']['version']}"
    return golden.find_mismatch([answer for _, answer in responses])


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
        return {status for status, _ in self.workers.values()} == {"READY"}


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
        return self._describe("/all")

    def find(self, version: str = "") -> RegisteredVersion | None:
        """Return a version; by default, the one that answers requests without a version."""
        return next(iter(self._describe(f"/{version}" if version else "")), None)

    def register(self, file_name: str, workers: int) -> None:
        """Start loading an archive of the model store; returns before it is loaded.

        A synchronous registration would delay the predictions of other clients for seconds.
        """
        values = {"url": file_name, "model_name": self.name, "initial_workers": workers}
        self._change("POST", "?" + urllib.parse.urlencode({**values, "synchronous": "false"}))

    def set_default(self, version: str) -> None:
        """Make a version the default, which answers requests without a version."""
        self._change("PUT", f"/{self.name}/{version}/set-default")

    def unregister(self, version: str) -> None:
        """Remove a version and end its workers immediately, even during a prediction."""
        self._change("DELETE", f"/{self.name}/{version}")

    def _describe(self, path: str) -> list[RegisteredVersion]:
        status, described = self._request("GET", f"/{self.name}{path}")
        if status != 200:
            return []
        return [
            RegisteredVersion(
                one["modelVersion"],
                {worker["id"]: (worker["status"], worker["pid"]) for worker in one["workers"]},
                one["jobQueueStatus"]["pendingRequests"],
            )
            for one in described
        ]

    def _change(self, method: str, path: str) -> None:
        status, answer = self._request(method, path)
        if status >= 300:
            reason = answer.get("message", answer) if isinstance(answer, dict) else answer
            raise ConfigError(
                f"TorchServe rejects {method} /models{path.partition('?')[0]}: {status}, {reason}",
                where=f"127.0.0.1:{self.port}",
                remedy="start it with deploy.model_api=true and the same deploy.model_store",
            )

    def _request(self, method: str, path: str) -> tuple[int, Any]:
        try:
            url = f"http://127.0.0.1:{self.port}/models{path}"
            status, body = send_request(method, url, _MANAGEMENT_TIMEOUT_SECONDS)
            return status, json.loads(body)
        except _NO_ANSWER as cause:
            raise ResourceError(
                f"the management API of TorchServe does not answer: {cause}",
                where=f"127.0.0.1:{self.port}",
                remedy="start a server with `arcloop serve deploy.model_api=true`, same ports",
            ) from None

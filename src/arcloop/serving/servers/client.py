"""Client of a running server, and the parity check of the server's answers."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arcloop.errors import ArtifactError
from arcloop.runtime.golden_batch import GOLDEN, GoldenBatch
from arcloop.runtime.predictor import K_HEADER
from arcloop.runtime.searcher import INDEX, read_index
from arcloop.serving.settings import DeploySettings

_CONNECTIONS = 8


class InferenceEndpoint(Protocol):
    """A model that answers prediction requests over HTTP."""

    @property
    def url(self) -> str:
        """The URL that answers predictions, for messages."""

    def predict(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; returns the status and the JSON body of the response.

        Raises:
            OSError, http.client.HTTPException, ValueError: There was no valid response.
        """


@dataclass(frozen=True)
class Endpoint:
    """A model on a server at a network address; see `InferenceEndpoint`.

    Attributes:
        host: IP address of the server.
        port: Its inference port.
        name: Name of the model.
        timeout_s: Time limit for a response, in seconds.
        version: Version of the model on a server with several versions; None selects the default
            version of the server.
    """

    host: str
    port: int
    name: str
    timeout_s: float
    version: str | None = None

    @property
    def path(self) -> str:
        """Path of the URL that answers predictions."""
        return f"/predictions/{self.name}" + (f"/{self.version}" if self.version else "")

    @property
    def root(self) -> str:
        """URL of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL that answers predictions."""
        return self.root + self.path

    def predict(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; see `InferenceEndpoint`."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            headers = {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
            connection.request("POST", self.path, image, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def local_endpoint(settings: DeploySettings) -> Endpoint:
    """Return the endpoint of a server on this machine with these settings."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return Endpoint(
        loopback.get(settings.host, settings.host),
        settings.inference_port,
        settings.name,
        settings.response_timeout_s,
    )


def load_golden_batch(unpacked: Path, tolerance: float) -> GoldenBatch:
    """Load the golden batch of an unpacked archive.

    Args:
        unpacked: The archive, whose hashes have been verified.
        tolerance: Largest allowed difference of a similarity.
    """
    return GoldenBatch(unpacked / GOLDEN, read_index(unpacked / INDEX), tolerance=tolerance)


def require_parity(endpoint: InferenceEndpoint, golden: GoldenBatch, version: str) -> None:
    """Send the golden batch to a running server and compare its answers with those of the run.

    Args:
        endpoint: The server.
        golden: The golden batch.
        version: The version that must answer.

    Raises:
        ArtifactError: The server does not answer, or another version answers, or an answer differs.
    """
    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            images = golden.encoded_images()
            responses = list(pool.map(lambda image: endpoint.predict(image, golden.k), images))
    except (OSError, http.client.HTTPException, ValueError) as cause:
        raise _parity_error(endpoint, f"it does not answer: {cause}") from None
    for status, answer in responses:
        if status != 200:
            raise _parity_error(endpoint, f"status {status}: {answer}")
        if answer["model"]["version"] != version:
            raise _parity_error(endpoint, f"it answers with version {answer['model']['version']}")
    if mismatch := golden.find_mismatch([answer for _, answer in responses]):
        raise _parity_error(endpoint, mismatch)


def _parity_error(endpoint: InferenceEndpoint, reason: str) -> ArtifactError:
    return ArtifactError(
        f"the server fails the parity check: {reason}",
        where=endpoint.url,
        remedy="earlier versions are unchanged; see `arcloop versions list`",
    )

"""Asking a running server, and the parity gate in front of it."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arcloop.errors import ArtifactError
from arcloop.runtime.golden_batch import GOLDEN, Golden
from arcloop.runtime.responder import K_HEADER
from arcloop.runtime.searcher import INDEX, read_index
from arcloop.serving.settings import DeploySettings

_CONNECTIONS = 8


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked.

    Attributes:
        host: Address.
        port: Its port.
        name: Of the model.
        timeout_s: Longest wait for an answer.
        version: Of the model, where the server holds several; None: its default one.
    """

    host: str
    port: int
    name: str
    timeout_s: float
    version: str | None = None

    @property
    def path(self) -> str:
        """Path of the URL."""
        return f"/predictions/{self.name}" + (f"/{self.version}" if self.version else "")

    @property
    def root(self) -> str:
        """URL of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def url(self) -> str:
        """Where to send an image."""
        return self.root + self.path

    def ask(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the reply.

        Raises:
            OSError, http.client.HTTPException, ValueError: There was no such reply.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            headers = {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
            connection.request("POST", self.path, image, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def endpoint_of(settings: DeploySettings) -> Endpoint:
    """Return where a server with these settings is asked from this machine."""
    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return Endpoint(
        anywhere.get(settings.host, settings.host),
        settings.inference_port,
        settings.name,
        settings.response_timeout_s,
    )


def stored_answers(unpacked: Path, tolerance: float) -> Golden:
    """Return the golden batch of an unpacked archive, with the answers of the run's embeddings.

    Args:
        unpacked: The archive, whose hashes were checked.
        tolerance: Largest difference of a similarity.
    """
    return Golden(unpacked / GOLDEN, read_index(unpacked / INDEX), tolerance=tolerance)


class Asked(Protocol):
    """Whatever can be asked about an image, as an `Endpoint` can."""

    @property
    def url(self) -> str:
        """Where it is."""

    def ask(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the reply."""


def require_parity(endpoint: Asked, golden: Golden, version: str) -> None:
    """Send the golden batch through a running server and hold its answers to the run's.

    Raises:
        ArtifactError: It answers with another version, or wrongly, or not at all.
    """
    try:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            replies = list(pool.map(lambda i: endpoint.ask(i, golden.k), golden.encoded()))
    except (OSError, http.client.HTTPException, ValueError) as cause:
        raise _refused(endpoint, f"it does not answer: {cause}") from None
    for status, answer in replies:
        if status != 200:
            raise _refused(endpoint, f"status {status}: {answer}")
        if answer["model"]["version"] != version:
            raise _refused(endpoint, f"it answers with version {answer['model']['version']}")
    if fault := golden.fault([answer for _, answer in replies]):
        raise _refused(endpoint, fault)


def _refused(endpoint: Asked, why: str) -> ArtifactError:
    return ArtifactError(
        f"the parity gate refuses the server: {why}",
        where=endpoint.url,
        remedy="the versions before it are untouched; see `versions.py list`",
    )

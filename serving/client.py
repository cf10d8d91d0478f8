"""Asking a running server, and the parity gate in front of it."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from arcloop.errors import ArtifactError
from parity import Golden
from responder import K_HEADER

_CONNECTIONS = 8


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked.

    Attributes:
        host: Address.
        port: Its port.
        name: Of the model.
        timeout_s: Longest wait for an answer.
    """

    host: str
    port: int
    name: str
    timeout_s: float

    @property
    def url(self) -> str:
        """Where to send an image."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/predictions/{self.name}"

    def ask(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the reply.

        Raises:
            OSError, http.client.HTTPException, ValueError: There was no such reply.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            headers = {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
            connection.request("POST", f"/predictions/{self.name}", image, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def require_parity(endpoint: Endpoint, golden: Golden, version: str) -> None:
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


def _refused(endpoint: Endpoint, why: str) -> ArtifactError:
    return ArtifactError(
        f"the parity gate refuses the server: {why}",
        where=endpoint.url,
        remedy="the versions before it are untouched; see `versions.py list`",
    )

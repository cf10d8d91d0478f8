"""Endpoints for the parity check: the Service by its URL, or through the API server's proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from arcloop.runtime.predictor import K_HEADER
from arcloop.serving.kubernetes.cluster import Cluster
from arcloop.serving.kubernetes.settings import KServeSettings, KubernetesSettings
from arcloop.serving.servers.client import InferenceEndpoint

_KSERVE_PORT = 80


def make_endpoint(settings: KubernetesSettings, cluster: Cluster) -> InferenceEndpoint:
    """Return the endpoint of a release's Service."""
    path = f"/predictions/{settings.name}"
    if settings.endpoint is not None:
        return UrlEndpoint(settings.endpoint.rstrip("/") + path, settings.response_timeout_s)
    service, port = settings.app, settings.service_port
    if isinstance(settings, KServeSettings):
        service, port = f"{settings.app}-predictor", _KSERVE_PORT
    proxy = f"/api/v1/namespaces/{settings.namespace}/services/{service}:{port}/proxy{path}"
    return ProxyEndpoint(cluster, proxy, settings.response_timeout_s)


@dataclass(frozen=True)
class UrlEndpoint:
    """A model at a URL that this machine can reach, e.g. the URL of a gateway."""

    url: str
    timeout_s: float

    def predict(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the response."""
        request = urllib.request.Request(  # noqa: S310 - the settings allow only http and https
            self.url, image, {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:  # noqa: S310
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as cause:
            with cause:
                return cause.code, cause.read().decode(errors="replace")


@dataclass(frozen=True)
class ProxyEndpoint:
    """A model behind a Service, reached through the proxy of the API server.

    A request is routed by the Service's selector and port to ready pods, and needs only the
    credentials that `deploy` uses.
    """

    cluster: Cluster
    path: str
    timeout_s: float

    @property
    def url(self) -> str:
        """URL of the proxy; requests need the credentials of the kubeconfig."""
        return self.cluster.address + self.path

    def predict(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the response."""
        status, body = self.cluster.post(self.path, image, {K_HEADER: str(k)}, self.timeout_s)
        if status != 200:
            return status, body.decode(errors="replace") if isinstance(body, bytes) else body
        return status, json.loads(body)

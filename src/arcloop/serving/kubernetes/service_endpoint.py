"""Where the parity gate asks a release: the Service, by its URL or through the API server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from arcloop.runtime.responder import K_HEADER
from arcloop.serving.kubernetes.cluster import Cluster
from arcloop.serving.kubernetes.settings import KServeSettings, KubernetesSettings
from arcloop.serving.servers.client import Asked

_KSERVE_PORT = 80


def endpoint_of(settings: KubernetesSettings, cluster: Cluster) -> Asked:
    """Return where the Service of a release is asked."""
    path = f"/predictions/{settings.name}"
    if settings.endpoint is not None:
        return UrlEndpoint(settings.endpoint.rstrip("/") + path, settings.response_timeout_s)
    service, port = settings.app, settings.service_port
    if isinstance(settings, KServeSettings):
        service, port = f"{settings.app}-predictor", _KSERVE_PORT
    proxied = f"/api/v1/namespaces/{settings.namespace}/services/{service}:{port}/proxy{path}"
    return ProxiedEndpoint(cluster, proxied, settings.response_timeout_s)


@dataclass(frozen=True)
class UrlEndpoint:
    """A model at a URL that this machine reaches, such as a gateway's; see `Asked`."""

    url: str
    timeout_s: float

    def ask(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the reply."""
        request = urllib.request.Request(  # noqa: S310 - the settings let http and https through
            self.url, image, {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:  # noqa: S310
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode(errors="replace")


@dataclass(frozen=True)
class ProxiedEndpoint:
    """A model behind a Service that the API server asks for us; see `Asked`.

    It goes the Service's way (selector, port, a ready pod), and needs no way into the cluster but
    the one that the deploy itself took.
    """

    cluster: Cluster
    path: str
    timeout_s: float

    @property
    def url(self) -> str:
        """Where to send an image, with the credentials of the kubeconfig."""
        return self.cluster.address + self.path

    def ask(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the reply."""
        status, body = self.cluster.post(self.path, image, {K_HEADER: str(k)}, self.timeout_s)
        if status != 200:
            return status, body.decode(errors="replace") if isinstance(body, bytes) else body
        return status, json.loads(body)

"""Typed settings of a deployment on a cluster; conf/deploy/ contains the values."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from arcloop.config.value_types import NonNegativeInt, Port, PositiveInt
from arcloop.serving.settings import DeploySettings

_GRACE_MARGIN_S = 10
_MAX_APP_LENGTH = 40  # object names are the app and a suffix, of at most 63 characters
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"({_SUBDOMAIN.pattern}/)?{_LABEL_NAME}")
_LABEL_VALUE = re.compile(rf"({_LABEL_NAME})?")
_BOUNDS = (
    ("cpu_request", "cpu_limit"),
    ("memory_request", "memory_limit"),
    ("scratch_limit", "scratch_limit"),
)


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings(DeploySettings):
    """Settings of a server on a cluster.

    Attributes:
        app: Name of every object.
        namespace: Namespace of the objects; it must exist.
        image: Image built from serving/Dockerfile, with its registry and tag.
        image_pull_secrets: Names of the secrets for pulling the image.
        model_claim: PersistentVolumeClaim of the model store; null: the image contains the archive.
        model_claim_path: Folder of the model store in the claim.
        replicas: Number of pods, or its minimum if there is an autoscaler.
        max_replicas: Maximum number of pods; a value above `replicas` creates an autoscaler.
        target_cpu_percent: Target of the autoscaler, in percent of the CPU request.
        cpu_request: CPUs that the scheduler reserves for a pod.
        cpu_limit: Maximum CPUs of a pod; the server sets its number of threads to it.
        memory_request: Memory that the scheduler reserves for a pod.
        memory_limit: Maximum memory of a pod.
        scratch_limit: Maximum size of the temporary files of a pod.
        gpus: Number of GPUs of a pod.
        node_selector: Labels that a node must have.
        tolerations: Tolerated taints, in the notation of Kubernetes.
        service_type: Type of the Service.
        service_port: Port of the Service.
        pod_address: Address that a pod listens on.
        client_namespaces: Namespaces that may send requests; empty: all.
        scraper_namespace: Namespace of the pods that may read metrics.
        scraper_labels: Labels of these pods.
        endpoint: URL for the parity gate; null: the proxy of the API server.
        endpoint_delay_s: Seconds until no new requests reach a pod that is being stopped.
        progress_deadline_s: Seconds without progress after which a rollout has failed.
        kubeconfig: Path of the kubeconfig; null: the default of kubectl, or the pod's account.
        context: Context in the kubeconfig; null: the current one.
        force_conflicts: Overwrite fields that another manager has set.
        dry_run: Print the objects and change nothing.

    Raises:
        ConfigError: Names every invalid value.
    """

    app: str
    namespace: str
    image: str
    image_pull_secrets: list[str]
    model_claim: str | None
    model_claim_path: str
    replicas: PositiveInt
    max_replicas: PositiveInt | None
    target_cpu_percent: Annotated[int, Field(ge=1, le=100)]
    cpu_request: str | float
    cpu_limit: str | float
    memory_request: str
    memory_limit: str
    scratch_limit: str
    gpus: NonNegativeInt
    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]]
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    service_port: Port
    pod_address: Literal["0.0.0.0", "::"]  # noqa: S104 - requests come from outside the pod
    client_namespaces: list[str]
    scraper_namespace: str
    scraper_labels: dict[str, str]
    endpoint: str | None
    endpoint_delay_s: PositiveInt
    progress_deadline_s: PositiveInt
    kubeconfig: str | None
    context: str | None
    force_conflicts: bool
    dry_run: bool

    @property
    def autoscaled(self) -> bool:
        """Whether an autoscaler sets the number of pods."""
        return self.max_replicas is not None and self.max_replicas > self.replicas

    @property
    def drain_s(self) -> int:
        """Seconds between the removal of a pod from the Service and its SIGTERM.

        At SIGTERM, TorchServe drops the requests that it has not answered, so the pod waits for the
        longest request. The FastAPI server answers them first.
        """
        dropped = self.response_timeout_s if self.server == "torchserve" else 0
        return self.endpoint_delay_s + dropped

    @property
    def grace_s(self) -> int:
        """Seconds until a pod that is being stopped is killed: drain, longest request, margin."""
        return self.drain_s + self.response_timeout_s + _GRACE_MARGIN_S

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from self._name_faults()
        yield from self._location_faults()
        yield from self._quantity_faults()
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            yield (
                f"deploy.max_replicas={self.max_replicas} must not be less than "
                f"deploy.replicas={self.replicas}"
            )
        if self.progress_deadline_s <= self.startup_timeout_s:
            yield (
                f"deploy.progress_deadline_s={self.progress_deadline_s} must be more than "
                f"deploy.startup_timeout_s={self.startup_timeout_s}"
            )

    def _name_faults(self) -> Iterator[str]:
        app = self.app
        if not (_DNS_LABEL.fullmatch(app) and app[0].isalpha() and len(app) <= _MAX_APP_LENGTH):
            yield (
                f"deploy.app={app!r} must be lower case letters, digits and '-', begin with a "
                f"letter and have at most {_MAX_APP_LENGTH} characters"
            )
        namespaces = [("namespace", self.namespace), ("scraper_namespace", self.scraper_namespace)]
        namespaces += [("client_namespaces", name) for name in self.client_namespaces]
        for key, name in namespaces:
            if not _DNS_LABEL.fullmatch(name):
                yield f"deploy.{key}={name!r} is not a valid name of a namespace"
        objects = [("image_pull_secrets", name) for name in self.image_pull_secrets]
        objects += [("model_claim", self.model_claim)] if self.model_claim is not None else []
        for key, name in objects:
            if not _SUBDOMAIN.fullmatch(name):
                yield f"deploy.{key}={name!r} is not a valid name of an object"
        for key in ("node_selector", "scraper_labels"):
            for label, value in getattr(self, key).items():
                if not (_LABEL_KEY.fullmatch(label) and _LABEL_VALUE.fullmatch(str(value))):
                    yield f"deploy.{key}: {label}={value!r} is not a valid label"

    def _location_faults(self) -> Iterator[str]:
        if not self.image or any(c.isspace() for c in self.image):
            yield f"deploy.image={self.image!r} must be the name of an image"
        path = self.model_claim_path
        if path.startswith("/") or ".." in path.split("/"):
            yield f"deploy.model_claim_path={path!r} must be a path inside the claim"
        if self.endpoint is not None:
            parts = urllib.parse.urlsplit(self.endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                yield (
                    f"deploy.endpoint={self.endpoint!r} must be a http or https URL without a "
                    "password"
                )

    def _quantity_faults(self) -> Iterator[str]:
        sizes = {key: _parse_quantity(getattr(self, key)) for pair in _BOUNDS for key in pair}
        for key, size in sizes.items():
            if size is None or not 0 < size < Decimal("Infinity"):
                yield f"deploy.{key}={getattr(self, key)!r} must be a quantity, e.g. 500m or 2Gi"
        for request, limit in _BOUNDS:
            low, high = sizes[request], sizes[limit]
            if low is not None and high is not None and low > high:
                yield (
                    f"deploy.{request}={getattr(self, request)} must not exceed "
                    f"deploy.{limit}={getattr(self, limit)}"
                )


def _parse_quantity(value: object) -> Decimal | None:
    from kubernetes.utils.quantity import parse_quantity

    try:
        return Decimal(parse_quantity(value))
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class KServeSettings(KubernetesSettings):
    """Settings of a server that KServe runs.

    Attributes:
        deployment_mode: KServe's mode that creates a Deployment instead of using Knative.
    """

    deployment_mode: Literal["Standard", "RawDeployment"]

"""Typed settings of a deployment on a cluster; conf/deploy/ contains the values."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from arcloop.config.restrictions import matching
from arcloop.config.value_types import NonNegativeInt, Port, PositiveInt
from arcloop.serving.settings import DeploySettings

_GRACE_MARGIN_S = 10
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


def _check_quantity(value: str | float) -> str | float:
    number = re.fullmatch(r"(\d+(\.\d*)?|\.\d+)([eE]\d+|m|k|[KMGTPE]i?)?", str(value))
    if number is None or float(number[1]) == 0:
        raise ValueError("must be a quantity, e.g. 500m or 2Gi")
    return value


AppName = Annotated[
    str,
    matching(
        r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?",  # object names consist of the app and a suffix
        "lower case letters, digits and '-', begin with a letter and have at most 40 characters",
    ),
]
Namespace = Annotated[str, matching(_DNS_LABEL, "the name of a namespace")]
ObjectName = Annotated[
    str, matching(rf"(?=.{{1,253}}$){_DNS_LABEL}(\.{_DNS_LABEL})*", "the name of an object")
]
LabelKey = Annotated[str, matching(rf"([a-z0-9.-]+/)?{_LABEL_NAME}", "the key of a label")]
LabelValue = Annotated[
    str, matching(rf"({_LABEL_NAME})?", "the value of a label, of at most 63 characters")
]
Quantity = Annotated[str | float, AfterValidator(_check_quantity)]
"""An amount of a resource in the notation of Kubernetes, e.g. 500m or 2Gi."""


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
        replicas: Number of pods; with an autoscaler, the minimum number.
        max_replicas: Maximum number of pods; a value above `replicas` creates an autoscaler.
        target_cpu_percent: Target of the autoscaler, in percent of the CPU request.
        cpu_request: CPUs that the scheduler reserves for a pod.
        cpu_limit: Maximum CPUs of a pod, also the number of threads of the server.
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
        endpoint: URL for the parity check; null: the proxy of the API server.
        endpoint_delay_s: Seconds until no new requests reach a pod that is being stopped.
        progress_deadline_s: Seconds without progress after which a rollout has failed.
        kubeconfig: Path of the kubeconfig; null: the default of kubectl, or the pod's account.
        context: Context in the kubeconfig; null: the current one.
        force_conflicts: Overwrite fields that another manager has set.
        dry_run: Print the objects and change nothing.

    Raises:
        ConfigError: A value is invalid; the message lists every such value.
    """

    app: AppName
    namespace: Namespace
    image: Annotated[str, matching(r"\S+", "the name of an image")]
    image_pull_secrets: list[ObjectName]
    model_claim: ObjectName | None
    model_claim_path: str
    replicas: PositiveInt
    max_replicas: PositiveInt | None
    target_cpu_percent: Annotated[int, Field(ge=1, le=100)]
    cpu_request: Quantity
    cpu_limit: Quantity
    memory_request: Quantity
    memory_limit: Quantity
    scratch_limit: Quantity
    gpus: NonNegativeInt
    node_selector: dict[LabelKey, LabelValue]
    tolerations: list[dict[str, Any]]
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    service_port: Port
    pod_address: Literal["0.0.0.0", "::"]  # noqa: S104 - requests come from outside the pod
    client_namespaces: list[Namespace]
    scraper_namespace: Namespace
    scraper_labels: dict[LabelKey, LabelValue]
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

        At SIGTERM, TorchServe drops pending requests, so the pod first waits for the longest
        request. The FastAPI server completes pending requests itself.
        """
        dropped = self.response_timeout_s if self.server == "torchserve" else 0
        return self.endpoint_delay_s + dropped

    @property
    def grace_s(self) -> int:
        """Seconds until a pod that is being stopped is killed: drain, longest request, margin."""
        return self.drain_s + self.response_timeout_s + _GRACE_MARGIN_S

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
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
        from kubernetes.utils.quantity import parse_quantity

        for resource in ("cpu", "memory"):
            request, limit = (getattr(self, f"{resource}_{kind}") for kind in ("request", "limit"))
            if parse_quantity(request) > parse_quantity(limit):
                yield (
                    f"deploy.{resource}_request={request} must not exceed "
                    f"deploy.{resource}_limit={limit}"
                )
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


@dataclass(frozen=True, kw_only=True)
class KServeSettings(KubernetesSettings):
    """Settings of a server that KServe runs.

    Attributes:
        deployment_mode: KServe's mode that creates a Deployment instead of using Knative.
    """

    deployment_mode: Literal["Standard", "RawDeployment"]

"""Typed settings of a deployment on a cluster; values live in conf/deploy/, ranges here."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from arcloop.config.value_types import NonNegativeInt, Port, PositiveInt
from arcloop.serving.kubernetes.syntax import (
    is_dns_label,
    is_label_key,
    is_label_value,
    is_subdomain,
    quantity,
)
from arcloop.serving.settings import DeploySettings

_MARGIN_S = 10
_LONGEST_APP = 40  # objects are named by it and a suffix, in at most 63 characters
_BOUNDS = (
    ("cpu_request", "cpu_limit"),
    ("memory_request", "memory_limit"),
    ("scratch_limit", "scratch_limit"),
)


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings(DeploySettings):
    """How an archive is served by a cluster.

    Attributes:
        app: Names every object.
        namespace: Where they are; it must exist.
        image: What serving/Dockerfile makes, with its registry and tag.
        image_pull_secrets: Names of the secrets to pull it with.
        model_claim: PersistentVolumeClaim with the model store; null: the archive is in the image.
        model_claim_path: Folder of the model store in the claim.
        replicas: Pods; the least of them where there is an autoscaler.
        max_replicas: Most pods; an autoscaler is made where this is more than `replicas`.
        target_cpu_percent: Use of the CPU request that the autoscaler aims at.
        cpu_request: CPUs that a pod is promised.
        cpu_limit: Most CPUs of a pod; its threads are made to fit.
        memory_request: Memory that a pod is promised.
        memory_limit: Most memory of a pod.
        scratch_limit: Most temporary files of a pod.
        gpus: Of a pod.
        node_selector: Labels of the nodes to run on.
        tolerations: Taints to bear, as Kubernetes writes them.
        service_type: Of the Service.
        service_port: Where the Service is asked.
        pod_address: Address a pod listens at.
        client_namespaces: Namespaces that may ask; none: anybody.
        scraper_namespace: Namespace of who may read metrics.
        scraper_labels: Its pods' labels.
        endpoint: URL at which the parity gate asks; null: through the API server's proxy.
        endpoint_delay_s: Time until everybody knows that a pod takes no more requests.
        progress_deadline_s: Longest time without progress of a rollout.
        kubeconfig: File that says how to reach the cluster; null: the usual places.
        context: Its context; null: the current one.
        force_conflicts: Take over fields that another manager has set.
        dry_run: Print the objects and touch nothing.

    Raises:
        ConfigError: Names every value that does not fit.
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
    pod_address: Literal["0.0.0.0", "::"]  # noqa: S104 - a pod is asked from outside itself
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
        """Whether an autoscaler decides on the number of pods."""
        return self.max_replicas is not None and self.max_replicas > self.replicas

    @property
    def drain_s(self) -> int:
        """How long a pod goes on answering before it is told to end.

        The second server finishes by itself what it was asked by then; TorchServe drops it, so the
        longest request is waited for as well.
        """
        dropped = self.response_timeout_s if self.server == "torchserve" else 0
        return self.endpoint_delay_s + dropped

    @property
    def grace_s(self) -> int:
        """Time from the order to end until a pod is killed; more than drain and longest request."""
        return self.drain_s + self.response_timeout_s + _MARGIN_S

    def _contradictions(self) -> Iterator[str]:
        yield from super()._contradictions()
        yield from self._bad_names()
        yield from self._bad_places()
        yield from self._bad_quantities()
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

    def _bad_names(self) -> Iterator[str]:
        if not (is_dns_label(self.app) and self.app[0].isalpha() and len(self.app) <= _LONGEST_APP):
            yield (
                f"deploy.app={self.app!r} must be lower case letters, digits and '-', begin with a "
                f"letter and have at most {_LONGEST_APP} characters"
            )
        namespaces = [("namespace", self.namespace), ("scraper_namespace", self.scraper_namespace)]
        namespaces += [("client_namespaces", name) for name in self.client_namespaces]
        for key, name in namespaces:
            if not is_dns_label(name):
                yield f"deploy.{key}={name!r} is no name of a namespace"
        objects = [("image_pull_secrets", name) for name in self.image_pull_secrets]
        objects += [("model_claim", self.model_claim)] if self.model_claim is not None else []
        for key, name in objects:
            if not is_subdomain(name):
                yield f"deploy.{key}={name!r} is no name of an object"
        for key in ("node_selector", "scraper_labels"):
            for label, value in getattr(self, key).items():
                if not (is_label_key(label) and is_label_value(value)):
                    yield f"deploy.{key}: {label}={value!r} is no label"

    def _bad_places(self) -> Iterator[str]:
        if not self.image or any(c.isspace() for c in self.image):
            yield f"deploy.image={self.image!r} must name an image"
        path = self.model_claim_path
        if path.startswith("/") or ".." in path.split("/"):
            yield f"deploy.model_claim_path={path!r} must be a path inside the claim"
        if self.endpoint is not None:
            parts = urllib.parse.urlsplit(self.endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                yield f"deploy.endpoint={self.endpoint!r} must be a http or https URL, no password"

    def _bad_quantities(self) -> Iterator[str]:
        sizes = {key: quantity(getattr(self, key)) for pair in _BOUNDS for key in pair}
        for key, size in sizes.items():
            if size is None or size <= 0:
                yield f"deploy.{key}={getattr(self, key)!r} must be a quantity, e.g. 500m or 2Gi"
        for low, high in _BOUNDS:
            least, most = sizes[low], sizes[high]
            if least is not None and most is not None and least > most:
                yield (
                    f"deploy.{low}={getattr(self, low)} must not exceed "
                    f"deploy.{high}={getattr(self, high)}"
                )


@dataclass(frozen=True, kw_only=True)
class KServeSettings(KubernetesSettings):
    """How an archive is served by KServe.

    Attributes:
        deployment_mode: KServe's name for pods of a Deployment, without Knative.
    """

    deployment_mode: Literal["Standard", "RawDeployment"]

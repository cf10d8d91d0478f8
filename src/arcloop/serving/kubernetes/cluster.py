"""A namespace of a cluster, through its API server; a refusal is told as one clear message."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3
from kubernetes import client, config, watch
from kubernetes.config.config_exception import ConfigException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import NotFoundError
from kubernetes.dynamic.resource import Resource

from arcloop.errors import ConfigError
from arcloop.serving.kubernetes.refusals import UnreachableError, refusal
from arcloop.serving.kubernetes.release import MANAGER
from arcloop.serving.kubernetes.settings import KubernetesSettings

Object = dict[str, Any]
_REQUEST_S = 30
_KINDS = {
    "ConfigMap": ("api", "", "v1", "configmaps"),
    "Deployment": ("apis", "apps", "v1", "deployments"),
    "HorizontalPodAutoscaler": ("apis", "autoscaling", "v2", "horizontalpodautoscalers"),
    "InferenceService": ("apis", "serving.kserve.io", "v1beta1", "inferenceservices"),
    "NetworkPolicy": ("apis", "networking.k8s.io", "v1", "networkpolicies"),
    "Pod": ("api", "", "v1", "pods"),
    "PodDisruptionBudget": ("apis", "policy", "v1", "poddisruptionbudgets"),
    "ReplicaSet": ("apis", "apps", "v1", "replicasets"),
    "Service": ("api", "", "v1", "services"),
    "ServiceAccount": ("api", "", "v1", "serviceaccounts"),
}


class Cluster:
    """The objects of one namespace.

    Args:
        api: A client with address and credentials.
        namespace: The namespace.

    Attributes:
        address: Of the API server.
        namespace: As given.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.address: str = api.configuration.host
        self.namespace = namespace
        self._client = DynamicClient(api, discoverer=_NoDiscovery)

    @classmethod
    def connect(cls, settings: KubernetesSettings) -> Cluster:
        """Read how to reach the cluster; nothing is sent yet.

        Raises:
            ConfigError: The kubeconfig is missing, damaged or has no such context.
        """
        try:
            api = config.new_client_from_config(
                settings.kubeconfig, settings.context, persist_config=False
            )
        except (ConfigException, OSError, ValueError, TypeError, KeyError) as cause:
            if settings.kubeconfig or settings.context or not _within_cluster():
                raise ConfigError(
                    f"no cluster is configured: {cause}",
                    where=settings.kubeconfig or os.environ.get("KUBECONFIG", "~/.kube/config"),
                    remedy="see `kubectl config get-contexts`; deploy.kubeconfig and "
                    "deploy.context choose another, deploy.dry_run=true needs none",
                ) from None
            configuration = client.Configuration()
            config.load_incluster_config(client_configuration=configuration)
            api = client.ApiClient(configuration)
        return cls(api, settings.namespace)

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object; None if there is none of this name."""
        with self._told(f"get {kind}/{name}"):
            try:
                found = self._client.get(
                    self._resource(kind),
                    name=name,
                    namespace=self.namespace,
                    _request_timeout=_REQUEST_S,
                )
            except NotFoundError:
                return None
            return found.to_dict()  # type: ignore[no-any-return]

    def list(self, kind: str, labels: Mapping[str, str]) -> list[Object]:
        """Return all objects of a kind that have these labels."""
        with self._told(f"list {kind}s"):
            found = self._client.get(
                self._resource(kind),
                namespace=self.namespace,
                label_selector=",".join(f"{key}={value}" for key, value in labels.items()),
                _request_timeout=_REQUEST_S,
            )
            return [dict(item) for item in found.to_dict()["items"]]

    def apply(self, wanted: Object, *, force: bool = False, dry_run: bool = False) -> None:
        """Make an object so, or make it; what it does not name is left to others.

        Args:
            wanted: The fields that are to be as given, and no longer any that were given before.
            force: Take fields over from other managers.
            dry_run: Only ask whether it would be accepted.
        """
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        with self._told(f"apply {kind}/{name}"):
            self._client.server_side_apply(
                self._resource(kind),
                body=wanted,
                name=name,
                namespace=self.namespace,
                field_manager=MANAGER,
                force_conflicts=force or None,
                dry_run="All" if dry_run else None,
                _request_timeout=_REQUEST_S,
            )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and all that it made; no matter if it is gone."""
        with self._told(f"delete {kind}/{name}"), contextlib.suppress(NotFoundError):
            self._client.delete(
                self._resource(kind),
                name=name,
                namespace=self.namespace,
                propagation_policy="Background",
                _request_timeout=_REQUEST_S,
            )

    def wait_for_change(self, kind: str, name: str, version: str, seconds: int) -> None:
        """Return when an object is no longer of this resource version, or after some seconds."""
        resource = self._resource(kind)
        watcher = watch.Watch()
        with self._told(f"watch {kind}/{name}"):
            events = watcher.stream(
                resource.get,
                namespace=self.namespace,
                field_selector=f"metadata.name={name}",
                resource_version=version,
                timeout_seconds=seconds,
                serialize=False,
                _request_timeout=(_REQUEST_S, _REQUEST_S + seconds),
            )
            with contextlib.closing(events):
                next(events, None)

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, bytes]:
        """Send bytes to a path of the API server that leads on to a server; return its answer.

        Args:
            path: E.g. that of a Service's proxy.
            body: Any bytes.
            headers: More headers.
            seconds: Longest wait for the answer.

        Raises:
            UnreachableError: The API server does not answer.
        """
        with self._told(f"post to {path}"):
            try:
                response = self._client.request(
                    "post",
                    path,
                    body=body,
                    header_params=dict(headers),
                    content_type="application/octet-stream",
                    serialize=False,
                    _request_timeout=(_REQUEST_S, seconds),
                )
            except client.ApiException as refused:
                if not refused.status or refused.status in (401, 403):
                    raise
                return int(refused.status), refused.body or b""
            return response.status, response.data

    def _resource(self, kind: str) -> Resource:
        prefix, group, version, plural = _KINDS[kind]
        return Resource(
            prefix=prefix,
            group=group,
            api_version=version,
            kind=kind,
            name=plural,
            namespaced=True,
            client=self._client,
        )

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except client.ApiException as cause:
            raise refusal(cause, doing, self.address, self.namespace) from None
        except (urllib3.exceptions.HTTPError, OSError) as cause:
            raise UnreachableError(
                f"the API server does not answer: {cause}",
                where=self.address,
                remedy="is it running, and is this the right context? see `kubectl cluster-info`",
            ) from None


class _NoDiscovery:
    """The kinds are known: no request to learn them, and no cache of them in a shared folder."""

    def __init__(self, client: DynamicClient, cache_file: str | None) -> None: ...


def _within_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ

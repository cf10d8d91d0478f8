"""Client of a cluster's API server for one namespace; converts each error to one message."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3
from kubernetes import client, config, watch
from kubernetes.config.config_exception import ConfigException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import NotFoundError
from kubernetes.dynamic.resource import Resource

from arcloop.errors import ArcloopError, ConfigError, ResourceError
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
_TEMPORARY = (410, 429, 500, 502, 503, 504)
_REMEDIES = {
    0: "check the certificates in the kubeconfig",
    401: "log in again: the credentials in the kubeconfig are wrong or expired",
    403: "ask an administrator for the Role in docs/kubernetes.md",
    404: "create the namespace, or choose another with deploy.namespace; for deploy=kserve, KServe "
    "must be installed",
    409: "another client is changing the object; deploy again later",
    422: "this field of an object cannot be changed, or the cluster's policies forbid the value",
}


class UnreachableError(ResourceError):
    """Raised if the API server does not answer; a later attempt may succeed."""


class Cluster:
    """The objects of one namespace.

    Args:
        api: A client with address and credentials.
        namespace: The namespace.

    Attributes:
        address: URL of the API server.
        namespace: The namespace.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.address: str = api.configuration.host
        self.namespace = namespace
        self._client = DynamicClient(api, discoverer=_NoDiscovery)

    @classmethod
    def connect(cls, settings: KubernetesSettings) -> Cluster:
        """Read address and credentials of the cluster, without sending a request.

        Raises:
            ConfigError: The kubeconfig is missing or damaged, or lacks the context.
        """
        try:
            api = config.new_client_from_config(
                settings.kubeconfig, settings.context, persist_config=False
            )
        except (ConfigException, OSError, ValueError, TypeError, KeyError) as cause:
            in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ
            if settings.kubeconfig or settings.context or not in_cluster:
                raise ConfigError(
                    f"no cluster is configured: {cause}",
                    where=settings.kubeconfig or os.environ.get("KUBECONFIG", "~/.kube/config"),
                    remedy="see `kubectl config get-contexts`; set deploy.kubeconfig and "
                    "deploy.context, or deploy.dry_run=true, which needs no cluster",
                ) from None
            configuration = client.Configuration()
            config.load_incluster_config(client_configuration=configuration)
            api = client.ApiClient(configuration)
        return cls(api, settings.namespace)

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        with self._errors(f"get {kind}/{name}"):
            try:
                found = self._client.get(self._resource(kind), name=name, **self._options())
            except NotFoundError:
                return None
            return found.to_dict()  # type: ignore[no-any-return]

    def list(self, kind: str, labels: Mapping[str, str]) -> list[Object]:
        """Return all objects of a kind that have these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        with self._errors(f"list {kind}s"):
            found = self._client.get(
                self._resource(kind), label_selector=selector, **self._options()
            )
            return [dict(item) for item in found.to_dict()["items"]]

    def apply(self, wanted: Object, *, force: bool = False, dry_run: bool = False) -> None:
        """Create or change an object by server-side apply; other fields keep their values.

        Args:
            wanted: The object with the fields to set. A field that an earlier call has set and that
                is missing here is removed.
            force: Overwrite fields that another manager has set.
            dry_run: Have the server check the request without applying it.
        """
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        with self._errors(f"apply {kind}/{name}"):
            self._client.server_side_apply(
                self._resource(kind),
                body=wanted,
                name=name,
                field_manager=MANAGER,
                force_conflicts=force or None,
                dry_run="All" if dry_run else None,
                **self._options(),
            )

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and its dependents, if it exists."""
        with self._errors(f"delete {kind}/{name}"), contextlib.suppress(NotFoundError):
            self._client.delete(
                self._resource(kind),
                name=name,
                propagation_policy="Background",
                **self._options(),
            )

    def wait_for_change(self, kind: str, name: str, version: str, seconds: int) -> None:
        """Wait until an object has another resource version, or for at most `seconds`."""
        watcher = watch.Watch()
        with self._errors(f"watch {kind}/{name}"):
            events = watcher.stream(
                self._resource(kind).get,
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
        """Post bytes to a path of the API server and return status and body of the response.

        Args:
            path: Path of the URL, e.g. that of a Service's proxy.
            body: Body of the request.
            headers: Additional headers.
            seconds: Time-out of the response.

        Raises:
            UnreachableError: The API server does not answer.
        """
        with self._errors(f"post to {path}"):
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
            except client.ApiException as cause:
                if not cause.status or cause.status in (401, 403):
                    raise
                return int(cause.status), cause.body or b""
            return response.status, response.data

    def _options(self) -> dict[str, Any]:
        return {"namespace": self.namespace, "_request_timeout": _REQUEST_S}

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
    def _errors(self, action: str) -> Iterator[None]:
        """Convert errors that the client raises in an action such as "get Deployment/mnist"."""
        try:
            yield
        except client.ApiException as cause:
            where = f"namespace {self.namespace} at {self.address}"
            raise _convert(cause, action, where) from None
        except (urllib3.exceptions.HTTPError, OSError) as cause:
            raise UnreachableError(
                f"the API server does not answer: {cause}",
                where=self.address,
                remedy="check that it is running and that the context is right; see "
                "`kubectl cluster-info`",
            ) from None


class _NoDiscovery:
    """Replaces the discovery of resources, which `_KINDS` lists."""

    def __init__(self, client: DynamicClient, cache_file: str | None) -> None: ...


def _convert(cause: client.ApiException, action: str, where: str) -> ArcloopError:
    status = _parse_status(cause)
    message = f"cannot {action}: {status.get('message') or cause.reason or cause.status}"
    if cause.status in _TEMPORARY:
        return UnreachableError(message, where=where, remedy="try again later")
    conflicts = [
        f"{detail.get('field')}: {detail.get('message')}"
        for detail in (status.get("details") or {}).get("causes") or []
        if detail.get("reason") == "FieldManagerConflict"
    ]
    if cause.status == 409 and conflicts:
        message = f"cannot {action}: other managers have set these fields to other values"
        return ResourceError(
            "\n    ".join([message, *conflicts]),
            where=where,
            remedy="agree on one manager, or overwrite the fields with deploy.force_conflicts=true",
        )
    kind = ConfigError if cause.status == 404 else ResourceError
    return kind(message, where=where, remedy=_REMEDIES.get(cause.status, "see the message above"))


def _parse_status(cause: client.ApiException) -> dict[str, Any]:
    try:
        status = json.loads(cause.body or b"{}")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}

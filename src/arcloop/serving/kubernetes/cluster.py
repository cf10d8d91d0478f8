"""Client of a cluster's API server for one namespace; converts each error to one message."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException

from arcloop.errors import ArcloopError, ConfigError, ResourceError
from arcloop.serving.kubernetes.objects import MANAGER, Object
from arcloop.serving.kubernetes.settings import KubernetesSettings

_REQUEST_S = 30
_PATHS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "InferenceService": ("apis/serving.kserve.io/v1beta1", "inferenceservices"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("api/v1", "pods"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "ReplicaSet": ("apis/apps/v1", "replicasets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
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
        self._api = api

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
            found = self._request("GET", self._path(kind, name), missing_ok=True)
            return json.loads(found) if found else None

    def list(self, kind: str, labels: Mapping[str, str]) -> list[Object]:
        """Return all objects of a kind that have these labels."""
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())}
        with self._errors(f"list {kind}s"):
            return list(json.loads(self._request("GET", self._path(kind), query=query))["items"])

    def apply(self, wanted: Object, *, force: bool = False, dry_run: bool = False) -> None:
        """Create or change an object by server-side apply; other fields keep their values.

        Args:
            wanted: The object with the fields to set. A field that an earlier call has set and that
                is missing here is removed.
            force: Overwrite fields that another manager has set.
            dry_run: Let the server validate the request without changing the object.
        """
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        query = {"fieldManager": MANAGER, "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        with self._errors(f"apply {kind}/{name}"):
            headers = {"Content-Type": "application/apply-patch+yaml"}
            path = self._path(kind, name)
            self._request("PATCH", path, query=query, body=wanted, headers=headers)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object and its dependents, if it exists."""
        query = {"propagationPolicy": "Background"}
        with self._errors(f"delete {kind}/{name}"):
            self._request("DELETE", self._path(kind, name), query=query, missing_ok=True)

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> tuple[int, bytes]:
        """Post bytes to a path of the API server and return status and body of the response.

        Args:
            path: Path of the URL, e.g. that of a Service's proxy.
            body: Body of the request.
            headers: Headers.
            seconds: Time limit for the response.

        Raises:
            UnreachableError: The API server does not answer.
        """
        with self._errors(f"post to {path}"):
            try:
                answer = self._request("POST", path, body=body, headers=headers, seconds=seconds)
                return 200, answer
            except client.ApiException as cause:
                if not cause.status or cause.status in (401, 403):
                    raise
                return int(cause.status), cause.body or b""

    def _path(self, kind: str, name: str = "") -> str:
        api, plural = _PATHS[kind]
        return f"/{api}/namespaces/{self.namespace}/{plural}/{name}".rstrip("/")

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = _REQUEST_S,
        missing_ok: bool = False,
    ) -> bytes:
        """Return the body of the response; empty if `missing_ok` and there is no such object."""
        try:
            response = self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=(_REQUEST_S, seconds),
            )
        except client.ApiException as cause:
            if missing_ok and cause.status == 404:
                return b""
            raise
        return bytes(response.data)

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

"""Deploy a release to a cluster and check its predictions, or roll back."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ArtifactError
from arcloop.runtime.golden_batch import GoldenBatch
from arcloop.runtime.predictor import K_HEADER
from arcloop.serving.kubernetes.cluster import Cluster, UnreachableError
from arcloop.serving.kubernetes.objects import MANAGER, Object, Release, make_objects
from arcloop.serving.kubernetes.rollout import (
    release_label,
    retry_while_unreachable,
    wait_for_rollout,
)
from arcloop.serving.kubernetes.settings import KServeSettings, KubernetesSettings
from arcloop.serving.servers.client import require_parity

PARITY_ATTEMPTS = 3
PARITY_PAUSE_S = 2.0
_SERVER_SIDE = (
    "deployment.kubernetes.io/revision",
    "kubectl.kubernetes.io/last-applied-configuration",
)


def deploy_release(release: Release, golden: GoldenBatch) -> None:
    """Deploy a release and check its predictions; after an error, restore the previous release.

    Args:
        release: The release.
        golden: The golden batch of its archive.

    Raises:
        ConfigError: The settings contradict each other, or no cluster is configured.
        ResourceError: The cluster refuses, does not answer, or its pods do not start.
        ArtifactError: The Service's predictions are wrong or come from another version.
    """
    settings = release.settings
    objects = make_objects(release)
    workload = objects[-1]
    cluster = Cluster.connect(settings)
    previous = cluster.get(workload["kind"], workload["metadata"]["name"])
    if settings.autoscaled and previous is not None and _owns_replicas(previous):
        # If the applied object lacks the field, the API server removes the value that an earlier
        # apply has set, and the default of one pod takes effect.
        workload["spec"]["replicas"] = previous["spec"]["replicas"]
    for wanted in objects:  # check all objects before any is changed
        cluster.apply(wanted, force=settings.force_conflicts, dry_run=True)
    print_line(
        f"applying {len(objects)} objects to namespace {settings.namespace} at {cluster.address}"
    )
    try:
        for wanted in objects:
            _apply(cluster, wanted, force=settings.force_conflicts)
        wait_for_rollout(cluster, release, workload)
        _check_parity(cluster, release, golden)
    except (ArcloopError, KeyboardInterrupt) as cause:
        outcome = _roll_back(cluster, release, workload, previous)
        print_line(outcome)
        if isinstance(cause, KeyboardInterrupt):
            raise
        raise type(cause)(
            f"{cause.what}\n  then: {outcome}", where=cause.where, remedy=cause.remedy
        ) from None
    _remove_unused(cluster, release, objects)
    print_line(
        f"{workload['kind']}/{settings.app} serves {release.version}; "
        "its predictions for the golden batch are correct"
    )


def _apply(cluster: Cluster, wanted: Object, *, force: bool) -> None:
    retry_while_unreachable(lambda: cluster.apply(wanted, force=force))


def _owns_replicas(live: Object) -> bool:
    """Return whether arcloop set the number of pods and no autoscaler has changed it since."""
    return any(
        entry.get("manager") == MANAGER
        and entry.get("operation") == "Apply"
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields", ())
    )


def _check_parity(cluster: Cluster, release: Release, golden: GoldenBatch) -> None:
    endpoint = _ServiceEndpoint(cluster, release.settings)
    for attempt in range(PARITY_ATTEMPTS):
        try:
            require_parity(endpoint, golden, release.version)
            return
        except (ArtifactError, UnreachableError):
            # Some nodes may still route requests to pods that have been stopped.
            if attempt == PARITY_ATTEMPTS - 1:
                raise
            time.sleep(PARITY_PAUSE_S)


@dataclass(frozen=True)
class _ServiceEndpoint:
    """The model behind the Service, at `deploy.endpoint` or through the proxy of the API server.

    The proxy routes a request by the Service's selector and port to ready pods, and needs only the
    credentials that `deploy` uses.
    """

    cluster: Cluster
    settings: KubernetesSettings

    @property
    def path(self) -> str:
        """Path of the URL: of the model in the server, or of the proxy at the API server."""
        path, service = f"/predictions/{self.settings.name}", self.settings.app
        if self.settings.endpoint is not None:
            return path
        port = self.settings.service_port
        if isinstance(self.settings, KServeSettings):
            service, port = f"{service}-predictor", 80
        return f"/api/v1/namespaces/{self.settings.namespace}/services/{service}:{port}/proxy{path}"

    @property
    def url(self) -> str:
        """The URL that answers predictions."""
        return (self.settings.endpoint or self.cluster.address).rstrip("/") + self.path

    def predict(self, image: bytes, k: int) -> tuple[int, Any]:
        """Send an encoded image; return the status and the JSON of the response."""
        headers = {"Content-Type": "application/octet-stream", K_HEADER: str(k)}
        if self.settings.endpoint is None:
            status, body = self.cluster.post(
                self.path, image, headers, self.settings.response_timeout_s
            )
        else:
            request = urllib.request.Request(self.url, image, headers)  # noqa: S310 - http or https
            try:
                response = urllib.request.urlopen(  # noqa: S310
                    request, timeout=self.settings.response_timeout_s
                )
            except urllib.error.HTTPError as cause:
                response = cause
            with response:
                status, body = response.status, response.read()
        return status, json.loads(body) if status == 200 else body.decode(errors="replace")


def _roll_back(
    cluster: Cluster, release: Release, workload: Object, previous: Object | None
) -> str:
    """Restore the previous workload; returns a description of the outcome."""
    kind, name = workload["kind"], workload["metadata"]["name"]
    try:
        if previous is None:
            retry_while_unreachable(lambda: cluster.delete(kind, name))
            return f"nothing was served before, so {kind}/{name} was removed"
        restored = _restored(previous, workload)
        labels = previous["metadata"].get("labels", {})
        version = labels.get("app.kubernetes.io/version", "unknown")
        if release_label(restored) == release_label(workload):
            return f"the same release was served before; {kind}/{name} was not changed"
        print_line(f"rolling back to {version}")
        _apply(cluster, restored, force=True)
        wait_for_rollout(cluster, release, restored)
    except UnreachableError as cause:
        return f"NOT rolled back, {kind}/{name} is in an unknown state: {cause.what}"
    except ArcloopError as cause:
        return f"the rollback failed: {cause.what}"
    return f"rolled back to {version}, which serves"


def _restored(previous: Object, workload: Object) -> Object:
    """Return the previous workload in the form for apply, without fields set by the server."""
    metadata = previous["metadata"]
    annotations = metadata.get("annotations", {}).items()
    spec = dict(previous["spec"])
    if "replicas" not in workload["spec"]:  # the autoscaler sets it
        spec.pop("replicas", None)
    restored: Object = _without_nulls(
        {
            "apiVersion": previous["apiVersion"],
            "kind": previous["kind"],
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": metadata.get("labels", {}),
                "annotations": {key: v for key, v in annotations if key not in _SERVER_SIDE},
            },
            "spec": spec,
        }
    )
    return restored


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _remove_unused(cluster: Cluster, release: Release, objects: list[Object]) -> None:
    """Remove the autoscaler and the server configs of earlier releases that are not in use.

    A config is in use as long as a revision refers to it, so that `kubectl rollout undo` works.
    """
    labels = {**release.selector, "app.kubernetes.io/managed-by": MANAGER}
    made = {(obj["kind"], obj["metadata"]["name"]) for obj in objects}
    try:
        used = made | {
            ("ConfigMap", volume.get("configMap", {}).get("name"))
            for revision in cluster.list("ReplicaSet", release.selector)
            for volume in revision["spec"]["template"]["spec"].get("volumes") or ()
        }
        for kind in ("HorizontalPodAutoscaler", "ConfigMap"):
            for name in (obj["metadata"]["name"] for obj in cluster.list(kind, labels)):
                if (kind, name) not in used:
                    cluster.delete(kind, name)
                    print_line(f"removed {kind}/{name}, which is not in use")
    except ArcloopError as cause:
        print_line(f"unused objects were not removed: {cause.what}")

"""Deploy a release to a cluster and check its predictions, or roll back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ArtifactError
from arcloop.serving.kubernetes.checks import check_objects
from arcloop.serving.kubernetes.cluster import Cluster, UnreachableError
from arcloop.serving.kubernetes.endpoint import make_endpoint
from arcloop.serving.kubernetes.objects import make_objects
from arcloop.serving.kubernetes.release import MANAGER, Release
from arcloop.serving.kubernetes.rollout import (
    release_label,
    retry_while_unreachable,
    wait_for_rollout,
)
from arcloop.serving.servers.client import load_golden_batch, require_parity

Object = dict[str, Any]
PARITY_ATTEMPTS = 3
PARITY_PAUSE_S = 2.0
_SERVER_SIDE = (
    "deployment.kubernetes.io/revision",
    "kubectl.kubernetes.io/last-applied-configuration",
)


def deploy_release(release: Release, unpacked: Path) -> None:
    """Deploy a release and check its predictions; after an error, restore the previous release.

    Args:
        release: The release.
        unpacked: Folder of its unpacked archive.

    Raises:
        ConfigError: The settings contradict each other, or no cluster is configured.
        ResourceError: The cluster refuses, does not answer, or its pods do not start.
        ArtifactError: The Service's predictions are wrong or come from another version.
    """
    settings = release.settings
    objects = _checked_objects(release)
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
        _check_parity(cluster, release, unpacked)
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


def manifest_yaml(release: Release) -> str:
    """Return the objects of a release for `kubectl apply --server-side -f -`."""
    return str(yaml.dump_all(_checked_objects(release), Dumper=_Dumper, sort_keys=False))


def _checked_objects(release: Release) -> list[Object]:
    objects = make_objects(release)
    check_objects(objects, release.settings.response_timeout_s)
    return objects


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


def _check_parity(cluster: Cluster, release: Release, unpacked: Path) -> None:
    golden = load_golden_batch(unpacked, release.settings.parity_tolerance)
    endpoint = make_endpoint(release.settings, cluster)
    for attempt in range(PARITY_ATTEMPTS):
        try:
            require_parity(endpoint, golden, release.version)
            return
        except (ArtifactError, UnreachableError):
            # Some nodes may still route requests to pods that have been stopped.
            if attempt == PARITY_ATTEMPTS - 1:
                raise
            time.sleep(PARITY_PAUSE_S)


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


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes multi-line strings as blocks, and repeated objects in full instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

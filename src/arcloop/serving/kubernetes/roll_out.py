"""A version -> served by a cluster and proven there, or undone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from arcloop.display.terminal import say
from arcloop.errors import ArcloopError, ArtifactError
from arcloop.serving.kubernetes.cluster import Cluster
from arcloop.serving.kubernetes.objects import objects_of
from arcloop.serving.kubernetes.refusals import UnreachableError
from arcloop.serving.kubernetes.release import MANAGER, Release
from arcloop.serving.kubernetes.rollout import patiently, pod_mark, wait_for_rollout
from arcloop.serving.kubernetes.semantics import require_sound
from arcloop.serving.kubernetes.service_endpoint import endpoint_of
from arcloop.serving.servers.client import require_parity, stored_answers

Object = dict[str, Any]
PARITY_ATTEMPTS = 3
PARITY_PAUSE_S = 2.0
_SERVER_SIDE = (
    "deployment.kubernetes.io/revision",
    "kubectl.kubernetes.io/last-applied-configuration",
)


def roll_out(release: Release, unpacked: Path) -> None:
    """Have a cluster serve a release, and prove it there; on failure, what was before serves again.

    Args:
        release: What.
        unpacked: Its archive, unpacked.

    Raises:
        ConfigError: The settings contradict each other, or no cluster is configured.
        ResourceError: The cluster refuses, does not answer, or its pods do not start.
        ArtifactError: The Service answers wrongly, or with another version.
    """
    settings = release.settings
    objects = _sound_objects(release)
    workload = objects[-1]
    cluster = Cluster.connect(settings)
    before = cluster.get(workload["kind"], workload["metadata"]["name"])
    if settings.autoscaled and before is not None and _holds_replicas(before):
        # A field that we no longer name would go back to its default: one pod.
        workload["spec"]["replicas"] = before["spec"]["replicas"]
    for wanted in objects:  # all of them, before the first is changed
        cluster.apply(wanted, force=settings.force_conflicts, dry_run=True)
    say(f"applying {len(objects)} objects to namespace {settings.namespace} at {cluster.address}")
    try:
        for wanted in objects:
            _apply(cluster, wanted, force=settings.force_conflicts)
        wait_for_rollout(cluster, release, workload)
        _require_parity(cluster, release, unpacked)
    except (ArcloopError, KeyboardInterrupt) as cause:
        outcome = _undo(cluster, release, workload, before)
        say(outcome)
        if isinstance(cause, KeyboardInterrupt):
            raise
        raise type(cause)(
            f"{cause.what}\n  then: {outcome}", where=cause.where, remedy=cause.remedy
        ) from None
    _tidy(cluster, release, objects)
    say(f"{workload['kind']}/{settings.app} serves {release.version}, proven on the golden batch")


def manifest_yaml(release: Release) -> str:
    """Return what `roll_out` would apply, as `kubectl apply --server-side -f -` takes it."""
    return str(yaml.dump_all(_sound_objects(release), Dumper=_Dumper, sort_keys=False))


def _sound_objects(release: Release) -> list[Object]:
    objects = objects_of(release)
    require_sound(objects, release.settings.response_timeout_s)
    return objects


def _apply(cluster: Cluster, wanted: Object, *, force: bool) -> None:
    patiently(lambda: cluster.apply(wanted, force=force))


def _holds_replicas(live: Object) -> bool:
    """Whether we have set the number of pods, and no autoscaler has set another since."""
    return any(
        entry.get("manager") == MANAGER
        and entry.get("operation") == "Apply"
        and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        for entry in live["metadata"].get("managedFields", ())
    )


def _require_parity(cluster: Cluster, release: Release, unpacked: Path) -> None:
    golden = stored_answers(unpacked, release.settings.parity_tolerance)
    endpoint = endpoint_of(release.settings, cluster)
    for attempt in range(PARITY_ATTEMPTS):
        try:
            require_parity(endpoint, golden, release.version)
        except (ArtifactError, UnreachableError):
            # It takes a moment until all parts of a cluster know which pods have gone.
            if attempt == PARITY_ATTEMPTS - 1:
                raise
            time.sleep(PARITY_PAUSE_S)
        else:
            return


def _undo(cluster: Cluster, release: Release, workload: Object, before: Object | None) -> str:
    """Have what was there before serve again; return what came of it."""
    kind, name = workload["kind"], workload["metadata"]["name"]
    try:
        if before is None:
            patiently(lambda: cluster.delete(kind, name))
            return f"nothing was served before, so {kind}/{name} was removed"
        earlier = _restored(before, workload)
        version = before["metadata"].get("labels", {}).get("app.kubernetes.io/version", "unknown")
        if pod_mark(earlier) == pod_mark(workload):
            return f"this very release was served before; {kind}/{name} is left as it is"
        say(f"rolling back to {version}")
        _apply(cluster, earlier, force=True)
        wait_for_rollout(cluster, release, earlier)
    except UnreachableError as cause:
        return f"NOT rolled back, {kind}/{name} is in an unknown state: {cause.what}"
    except ArcloopError as cause:
        return f"rolling back failed: {cause.what}"
    return f"rolled back to {version}, which serves"


def _restored(before: Object, workload: Object) -> Object:
    """Return what to apply so that a workload is as it was before another was applied."""
    metadata = before["metadata"]
    annotations = metadata.get("annotations", {}).items()
    spec = dict(before["spec"])
    if "replicas" not in workload["spec"]:  # the autoscaler's
        spec.pop("replicas", None)
    restored: Object = _without_nulls(
        {
            "apiVersion": before["apiVersion"],
            "kind": before["kind"],
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


def _tidy(cluster: Cluster, release: Release, objects: list[Object]) -> None:
    """Remove what earlier releases left and nothing uses: an autoscaler, server configs.

    A revision that `kubectl rollout undo` can go back to keeps its config.
    """
    ours = {**release.selector, "app.kubernetes.io/managed-by": MANAGER}
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    try:
        used = made | {
            ("ConfigMap", volume.get("configMap", {}).get("name"))
            for revision in cluster.list("ReplicaSet", release.selector)
            for volume in revision["spec"]["template"]["spec"].get("volumes") or ()
        }
        for kind in ("HorizontalPodAutoscaler", "ConfigMap"):
            for one in cluster.list(kind, ours):
                if (kind, one["metadata"]["name"]) not in used:
                    cluster.delete(kind, one["metadata"]["name"])
                    say(f"removed {kind}/{one['metadata']['name']}, which nothing uses")
    except ArcloopError as cause:
        say(f"not tidied up: {cause.what}")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Texts of several lines as blocks, and no references between objects."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)

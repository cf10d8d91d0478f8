"""Waiting for a rollout: progress for the user, and an early end where it cannot succeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from arcloop.display.terminal import say
from arcloop.errors import ResourceError
from arcloop.serving.kubernetes.cluster import Cluster
from arcloop.serving.kubernetes.pods import serves, troubles
from arcloop.serving.kubernetes.refusals import UnreachableError
from arcloop.serving.kubernetes.release import RELEASE, Release

Object = Mapping[str, Any]
_T = TypeVar("_T")
WATCH_S = 2
PATIENCE_S = 60.0
RETRY_S = 1.0
_LATE_S = 60.0


class RolloutError(ResourceError):
    """Pods do not come to serve a release."""


def pod_mark(workload: Object) -> str | None:
    """Return the label that the pods of this very template have; see `pod_template`."""
    spec = workload["spec"]
    labels = spec["template"]["metadata"].get("labels") if "template" in spec else None
    marked = labels or spec.get("predictor", {}).get("labels") or {}
    return marked.get(RELEASE)


def wait_for_rollout(cluster: Cluster, release: Release, workload: Object) -> None:
    """Wait until pods of a workload's template, and no others, serve.

    The connection may be lost on the way for up to a minute.

    Args:
        cluster: Where.
        release: Whose pods.
        workload: As it was applied.

    Raises:
        RolloutError: They will not, or not in time; the pods' reasons are in the message.
        UnreachableError: The API server does not answer any more.
    """
    kind, name = workload["kind"], workload["metadata"]["name"]
    mark = pod_mark(workload)
    told, since = "", time.monotonic()
    while True:
        live = patiently(lambda: cluster.get(kind, name))
        if live is None:
            raise _failed(f"somebody deleted {kind}/{name}", cluster, [])
        pods = patiently(lambda: cluster.list("Pod", release.selector))
        ours = [pod for pod in pods if pod["metadata"].get("labels", {}).get(RELEASE) == mark]
        others = [
            pod for pod in pods if pod not in ours and "deletionTimestamp" not in pod["metadata"]
        ]
        done, line = _progress(live, ours, others)
        if line != told:
            say(f"rollout: {line}")
            told, since = line, time.monotonic()
        if done:
            return
        hopeless = [trouble for trouble in troubles(ours) if trouble.hopeless]
        if hopeless:
            raise _failed("the new pods cannot start", cluster, ours)
        if _deadline_exceeded(live):
            raise _failed("ProgressDeadlineExceeded: the rollout makes no progress", cluster, ours)
        late = time.monotonic() - since - release.settings.progress_deadline_s
        if late > (_LATE_S if kind == "Deployment" else 0):
            raise _failed(f"nothing happened for {time.monotonic() - since:.0f} s", cluster, ours)
        _sleep_until_change(cluster, kind, name, live)


def patiently(work: Callable[[], _T]) -> _T:
    """Do work that may be done twice, again and again while the API server does not answer.

    Raises:
        UnreachableError: It does not for a minute.
    """
    deadline = time.monotonic() + PATIENCE_S
    lost = False
    while True:
        try:
            result = work()
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            if not lost:
                say("the API server does not answer; asking again")
            lost = True
            time.sleep(RETRY_S)
            continue
        if lost:
            say("the API server answers again")
        return result


def _sleep_until_change(cluster: Cluster, kind: str, name: str, live: Object) -> None:
    try:
        cluster.wait_for_change(kind, name, live["metadata"]["resourceVersion"], WATCH_S)
    except UnreachableError:
        # Too old a version, or a connection lost; whether it is back, the next request shows.
        time.sleep(RETRY_S)


def _progress(live: Object, ours: Sequence[Object], others: Sequence[Object]) -> tuple[bool, str]:
    """Return whether the rollout is complete, and a line about how far it is."""
    ready, old = (sum(serves(pod) for pod in pods) for pods in (ours, others))
    status = live.get("status") or {}
    if live["kind"] != "Deployment":
        # What KServe's status says of a change under way is not relied on; the pods are counted.
        wanted = live["spec"]["predictor"].get("minReplicas", 1)
        conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
        done = ready >= max(1, wanted) and not others and conditions.get("Ready") == "True"
    else:
        wanted = live["spec"].get("replicas", 1)
        updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
        seen = status.get("observedGeneration", 0) >= live["metadata"]["generation"]
        whole = updated == total == status.get("availableReplicas", 0) >= wanted
        done = seen and whole and ready >= wanted and not others
    return done, f"{ready} of {wanted} new pods ready, {old} old pods serving"


def _deadline_exceeded(live: Object) -> bool:
    status = live.get("status") or {}
    current = status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0)
    return current and any(
        c["type"] == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"
        for c in status.get("conditions") or []
    )


def _failed(what: str, cluster: Cluster, pods: Sequence[Object]) -> RolloutError:
    lines = [trouble.text for trouble in troubles(pods)] or ["the pods tell no reason"]
    return RolloutError(
        "\n    ".join([what, *lines]),
        where=f"namespace {cluster.namespace} at {cluster.address}",
        remedy="mend what the pods complain of, and deploy again",
    )

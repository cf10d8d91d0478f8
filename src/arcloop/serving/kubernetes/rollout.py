"""Wait for a rollout: report its progress, and end early if it cannot succeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from arcloop.display.terminal import print_line
from arcloop.errors import ResourceError
from arcloop.serving.kubernetes.cluster import Cluster, UnreachableError
from arcloop.serving.kubernetes.objects import RELEASE_LABEL, Object, Release

_T = TypeVar("_T")
POLL_S = 2.0
MAX_OUTAGE_S = 60.0
RETRY_S = 1.0
_DEADLINE_MARGIN_S = 60.0
_FATAL_REASONS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_MAX_RESTARTS = 2
_LOG_LINES = 4


def release_label(workload: Object) -> str | None:
    """Return the release label of the pods of a workload; see objects.yaml.j2."""
    spec = workload["spec"]
    labels = spec["template"]["metadata"].get("labels") if "template" in spec else None
    return (labels or spec.get("predictor", {}).get("labels") or {}).get(RELEASE_LABEL)


def wait_for_rollout(cluster: Cluster, release: Release, workload: Object) -> None:
    """Wait until all pods of the app have the workload's template and are ready.

    The connection to the API server may be lost for up to `MAX_OUTAGE_S`.

    Args:
        cluster: The cluster.
        release: The release, for its selector and deadline.
        workload: The workload as it was applied.

    Raises:
        ResourceError: The pods cannot start or missed the deadline; the message has the reasons.
        UnreachableError: The API server did not answer for `MAX_OUTAGE_S`.
    """
    kind, name = workload["kind"], workload["metadata"]["name"]
    label = release_label(workload)
    progress, since = "", time.monotonic()
    while True:
        live = retry_while_unreachable(lambda: cluster.get(kind, name))
        if live is None:
            raise _error(f"{kind}/{name} was deleted", cluster, [])
        pods = retry_while_unreachable(lambda: cluster.list("Pod", release.selector))
        new = [pod for pod in pods if pod["metadata"].get("labels", {}).get(RELEASE_LABEL) == label]
        old = [pod for pod in pods if pod not in new and not _is_terminating(pod)]
        done, line = _progress(live, new, old)
        if line != progress:
            print_line(f"rollout: {line}")
            progress, since = line, time.monotonic()
        if done:
            return
        waited = time.monotonic() - since
        # Kubernetes reports a missed deadline of a Deployment itself, so wait for that report.
        margin = _DEADLINE_MARGIN_S if kind == "Deployment" else 0
        if any(is_fatal for _, is_fatal in _find_problems(new)):
            raise _error("the new pods cannot start", cluster, new)
        if _deadline_exceeded(live):
            raise _error("ProgressDeadlineExceeded: the rollout makes no progress", cluster, new)
        if waited > release.settings.progress_deadline_s + margin:
            raise _error(f"no progress for {waited:.0f} s", cluster, new)
        time.sleep(POLL_S)


def retry_while_unreachable(work: Callable[[], _T]) -> _T:
    """Repeat idempotent work while the API server does not answer.

    Raises:
        UnreachableError: It did not answer for `MAX_OUTAGE_S`.
    """
    deadline = time.monotonic() + MAX_OUTAGE_S
    lost = False
    while True:
        try:
            result = work()
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            if not lost:
                print_line("the API server does not answer; retrying")
            lost = True
            time.sleep(RETRY_S)
            continue
        if lost:
            print_line("the API server answers again")
        return result


def _find_problems(pods: Sequence[Object]) -> list[tuple[str, bool]]:
    """Return the reasons why pods are not ready, according to their statuses.

    Each is a tuple: a text with the pod, the reason and the last lines of its output, and whether
    the problem is fatal, so that waiting longer does not help.
    """
    return [problem for pod in pods if not _serves(pod) for problem in _pod_problems(pod)]


def _serves(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not _is_terminating(pod)


def _is_terminating(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _progress(live: Object, new: Sequence[Object], old: Sequence[Object]) -> tuple[bool, str]:
    """Return whether the rollout is complete, and a line about its progress."""
    ready, serving_old = (sum(map(_serves, pods)) for pods in (new, old))
    status = live.get("status") or {}
    if live["kind"] == "Deployment":
        wanted = live["spec"].get("replicas", 1)
        updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
        complete = updated == total == status.get("availableReplicas", 0) >= wanted
        done = complete and status.get("observedGeneration", 0) >= live["metadata"]["generation"]
    else:
        # KServe's status may be outdated, so only the pods and the condition Ready are used.
        wanted = max(1, live["spec"]["predictor"].get("minReplicas", 1))
        conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
        done = conditions.get("Ready") == "True"
    done = done and ready >= wanted and not old
    return done, f"{ready} of {wanted} new pods ready, {serving_old} old pods serving"


def _deadline_exceeded(live: Object) -> bool:
    status = live.get("status") or {}
    current = status.get("observedGeneration", 0) >= live["metadata"].get("generation", 0)
    return current and any(
        c["type"] == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"
        for c in status.get("conditions") or []
    )


def _error(message: str, cluster: Cluster, pods: Sequence[Object]) -> ResourceError:
    reasons = [text for text, _ in _find_problems(pods)] or ["the pods report no reason"]
    return ResourceError(
        "\n    ".join([message, *reasons]),
        where=f"namespace {cluster.namespace} at {cluster.address}",
        remedy="fix the problems of the pods, and deploy again",
    )


def _pod_problems(pod: Object) -> Iterator[tuple[str, bool]]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"{name} has no node: {condition.get('message', '')}", False
    if status.get("phase") == "Failed":
        text = f"{name} failed: {status.get('reason', '')} {status.get('message', '')}".rstrip()
        yield text, False
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or []:
            yield from _container_problems(name, container)


def _container_problems(pod: str, status: Object) -> Iterator[tuple[str, bool]]:
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    reason = waiting.get("reason") or ended.get("reason")
    if reason in (None, "ContainerCreating", "PodInitializing"):
        if "running" in state and not status.get("ready"):
            yield f"{pod} runs and is not ready yet", False
        return
    restarts = status.get("restartCount", 0)
    words = [f"{pod}: {reason}"]
    if restarts:
        words.append(f"after {restarts} restart{'s' if restarts > 1 else ''},")
    if ended:
        words.append(f"exit code {ended.get('exitCode')}")
        if ended.get("reason") not in (None, "Error", reason):
            words.append(f"({ended['reason']})")
    output = (ended.get("message") or waiting.get("message") or "").strip().splitlines()
    text = "\n        ".join([" ".join(words).rstrip(","), *output[-_LOG_LINES:]])
    # A container that crashes repeatedly runs between crashes, so its restarts are counted.
    yield text, reason in _FATAL_REASONS or restarts >= _MAX_RESTARTS

"""Why pods do not serve, as their own statuses tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
_HOPELESS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CrashLoopBackOff")
_RESTARTS = 2
_LINES = 4


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod from serving.

    Attributes:
        text: The pod, the reason, and what its program last said.
        hopeless: Whether waiting will not help.
    """

    text: str
    hopeless: bool


def troubles(pods: Sequence[Object]) -> list[Trouble]:
    """Return what keeps pods from serving; [] where all do or nothing is known yet."""
    return [trouble for pod in pods if not serves(pod) for trouble in _of_pod(pod)]


def serves(pod: Object) -> bool:
    """Whether a pod is ready and to stay."""
    conditions = pod.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _of_pod(pod: Object) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Trouble(f"{name} has no node: {condition.get('message', '')}", hopeless=False)
    if status.get("phase") == "Failed":
        text = f"{name} failed: {status.get('reason', '')} {status.get('message', '')}".rstrip()
        yield Trouble(text, hopeless=False)
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or []:
            yield from _of_container(name, container)


def _of_container(pod: str, status: Object) -> Iterator[Trouble]:
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated") or {}
    reason = waiting.get("reason") or ended.get("reason")
    if reason in (None, "ContainerCreating", "PodInitializing"):
        if "running" in state and not status.get("ready"):
            yield Trouble(f"{pod} runs and is not ready yet", hopeless=False)
        return
    restarts = status.get("restartCount", 0)
    words = [f"{pod}: {reason}"]
    if restarts:
        words.append(f"after {restarts} restart{'s' if restarts > 1 else ''},")
    if ended:
        words.append(f"exit code {ended.get('exitCode')}")
        if ended.get("reason") not in (None, "Error", reason):
            words.append(f"({ended['reason']})")
    told = (ended.get("message") or waiting.get("message") or "").strip().splitlines()
    text = "\n        ".join([" ".join(words).rstrip(","), *told[-_LINES:]])
    # Between two crashes a container runs; how often it has crashed tells more than how it is now.
    waits_in_vain = reason in _HOPELESS and reason != "CrashLoopBackOff"
    yield Trouble(text, hopeless=waits_in_vain or restarts >= _RESTARTS)

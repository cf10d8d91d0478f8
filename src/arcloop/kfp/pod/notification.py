"""Messages that the tasks notify and notify_failure post to a webhook."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arcloop.kfp.pod.steps import read_result

SUCCEEDED = ("COMPLETE", "SUCCEEDED")
"""States of a run in which every task succeeded: on a KFP server, and in a local run."""
LOCAL_ERROR = "ARCLOOP_ERROR"
"""Environment variable with the error of the last task that failed, in a local run."""
_NOTIFIED_METRICS = ("top1", "map_at_r", "eer")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_WORKFLOW = "workflows.argoproj.io/workflow"
_NODE = "workflows.argoproj.io/node-name"
_MAX_REASONS = 5


def post_result(webhook_env: str, timeout_s: float, outcome: str, evaluation: str) -> str:
    """Post the outcome of a run with its metrics and the gate decision; see `post`.

    Returns:
        `evaluation`, from which a local run reads the result.
    """
    metrics, gate = read_result(Path(evaluation))
    shown = [f"{name} {metrics[name]:.4f}" for name in _NOTIFIED_METRICS if name in metrics]
    post(webhook_env, timeout_s, "\n".join([outcome, ", ".join(shown), *gate["reasons"]]))
    return evaluation


def post_failure(
    webhook_env: str, timeout_s: float, run_name: str, state: str, workflow: str
) -> None:
    """Post why a run failed; post nothing if its tasks succeeded.

    A KFP server gives its exit task no error message. Its state is COMPLETE, FAILED or RUNNING.
    RUNNING has two meanings: the pod of a task was killed or, on servers before 2.17, the run
    succeeded and has a condition. The states of the pods tell which of the two it is.

    Args:
        webhook_env: Environment variable that contains the URL.
        timeout_s: Time-out of each request, in seconds.
        run_name: Name of the run, for the message.
        state: `PipelineTaskFinalStatus.state`.
        workflow: `PipelineTaskFinalStatus.pipeline_job_resource_name`, the name of the workflow.
    """
    if state in SUCCEEDED:
        return
    outcome = f"{run_name}: failed"
    try:
        reasons = _read_reasons(workflow, timeout_s)
    except Exception as cause:  # noqa: BLE001 - the message is posted without the reasons
        print(f"the pods of the run cannot be listed: {type(cause).__name__}: {cause}")
        reasons = ["its pods cannot be listed; see the logs of its tasks"]
        if state != "FAILED":
            outcome = f"{run_name}: ended in the unclear state {state}"
    if reasons or state == "FAILED":
        post(webhook_env, timeout_s, "\n".join([outcome, *reasons]))


def _read_reasons(workflow: str, timeout_s: float) -> list[str]:
    """Return why tasks of the run failed: in a local run the error, in a pod from the pods."""
    if "KFP_POD_NAME" not in os.environ:
        return [os.environ.get(LOCAL_ERROR) or "see its log"]
    import kubernetes

    kubernetes.config.load_config()
    pods = kubernetes.client.CoreV1Api().list_namespaced_pod(
        _NAMESPACE.read_text(encoding="utf-8").strip(),
        label_selector=f"{_WORKFLOW}={workflow}",
        _request_timeout=timeout_s,
    )
    return failure_reasons(pods.items, workflow)


def failure_reasons(pods: Iterable[Any], workflow: str) -> list[str]:
    """Return one line for each task that failed, at most 5.

    Args:
        pods: Pods of the run, as returned by the Kubernetes client.
        workflow: Name of the workflow.
    """
    tasks: dict[str, list[Any]] = {}
    for pod in pods:
        node = (pod.metadata.annotations or {}).get(_NODE, pod.metadata.name)
        # Argo appends the number of the attempt to the name of the task.
        task = re.sub(r"\(\d+\)$", "", node).removeprefix(f"{workflow}.")
        tasks.setdefault(task, []).append(pod)
    failed = {
        task: max(attempts, key=lambda pod: pod.metadata.creation_timestamp)
        for task, attempts in tasks.items()
        if all(pod.status.phase == "Failed" for pod in attempts)
    }
    return [_reason(task, pod) for task, pod in failed.items()][:_MAX_REASONS]


def _reason(task: str, pod: Any) -> str:
    """Return why a pod failed; `pod.call` writes the error of a step as termination message."""
    for container in pod.status.container_statuses or ():
        ended = container.state.terminated
        if container.name == "main" and ended is not None and ended.exit_code:
            return ended.message or f"{task}: {ended.reason}, exit code {ended.exit_code}"
    details = ", ".join(filter(None, (pod.status.reason, pod.status.message)))
    return f"{task}: {details or 'the pods report no reason'}"


def post(webhook_env: str, timeout_s: float, text: str) -> None:
    """Post a message; if this fails, print the type of the error and continue.

    Args:
        webhook_env: Environment variable that contains the URL.
        timeout_s: Time-out of the request, in seconds.
        text: The message.
    """
    try:
        request = urllib.request.Request(  # noqa: S310 - an administrator configures the URL
            os.environ[webhook_env],
            json.dumps({"text": text}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
    except Exception as cause:  # noqa: BLE001 - some messages contain the URL, which is a secret
        print(f"the notification was not delivered: {type(cause).__name__}")

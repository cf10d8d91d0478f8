"""The Argo workflow of a run, and what the KFP API tells of it.

Each rule names its file and function in kubeflow/pipelines, release-2.17, backend/src.
"""

import uuid
from datetime import UTC, datetime

NAME = "arcloop-abcde"
STATES = {
    "PENDING": "PENDING", "RUNNING": "RUNNING", "SUCCEEDED": "SUCCEEDED", "SKIPPED": "SKIPPED",
    "FAILED": "FAILED", "ERROR": "FAILED",
}  # fmt: skip
"""apiserver/model/run.go, RuntimeState.ToV2; other phases, such as Omitted, are unspecified."""


def workflow(phase, failed_message="Error (exit code 1)", **tasks):
    """A workflow with these tasks: name -> phase of the task.

    v2/compiler/argocompiler/dag.go and container.go: a task is the nodes NAME-driver and NAME; the
    node NAME is a DAG with the node executor, which is skipped if the result is cached. With
    retries, executor is a node of type Retry, and each attempt is a pod executor(N).
    """
    nodes = {}

    def add(path, kind, state, template, boundary=None, **more):
        name = f"{NAME}.{path}" if path else NAME
        node_id = f"{NAME}-{1000 + len(nodes)}" if path else NAME
        started, ended = state not in ("Omitted", "Pending"), state not in ("Running", "Pending")
        nodes[node_id] = {
            "id": node_id, "name": name, "displayName": name.rpartition(".")[2], "type": kind,
            "phase": state, "templateName": template, "boundaryID": boundary,
            "started": 1_700_000_000 + len(nodes) if started else None,
            "finished": 1_700_000_100 + len(nodes) if started and ended else None,
            "finishedAt": f"2026-11-28T12:00:{len(nodes):02d}Z", **more,
        }  # fmt: skip
        return node_id

    add("", "DAG", phase, "entrypoint")
    add("root-driver", "Pod", "Succeeded", "system-dag-driver")
    root = add("root", "DAG", phase, "root")
    for name, state in tasks.items():
        name = name.replace("_", "-")
        if name == "condition-1":
            add(f"root.{name}-driver", "Pod", "Succeeded", "system-dag-driver", root)
            add(f"root.{name}", "Skipped", state, f"comp-{name}", root)
            continue
        driver = "Omitted" if state == "Omitted" else "Succeeded"
        add(f"root.{name}-driver", "Pod", driver, "system-container-driver", root)
        if state == "Cached":
            task = add(f"root.{name}", "DAG", "Succeeded", "retry-system-container-executor", root)
            add(f"root.{name}.executor", "Skipped", "Skipped", "retry-system-container-impl", task)
        elif state not in ("Omitted", "Pending"):
            task = add(f"root.{name}", "DAG", state, "retry-system-container-executor", root)
            pods = [("Failed", failed_message)] * 2 if state == "Failed" else [(state, None)]
            add(f"root.{name}.executor", "Retry", state, "retry-system-container-impl", task)
            for number, (phase_of_pod, message) in enumerate(pods):
                path = f"root.{name}.executor({number})"
                more = {"message": message} if message else {}
                add(path, "Pod", phase_of_pod, "retry-system-container-impl", task, **more)
        else:
            add(f"root.{name}", "DAG", state, "retry-system-container-executor", root)
    return {"name": NAME, "phase": phase, "nodes": nodes}


def time_of(seconds):
    """A time of protobuf in JSON; zero is that of the database, None that of Go."""
    if seconds is None:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def task_detail(node):
    """Return a node as the API does: with a random ID, and without the name of its pod.

    apiserver/server/api_converter.go, toModelTask and toApiPipelineTaskDetail; zero values are not
    sent: apiserver/common/utils.go, CustomMarshaler.
    """
    state = STATES.get(node["phase"].upper())
    return {
        "task_id": str(uuid.uuid4()),
        "display_name": node["displayName"],
        "create_time": time_of(0),
        "start_time": time_of(node.get("started")),
        "end_time": time_of(node.get("finished")),
        **({"state": state} if state else {}),
        "child_tasks": [{"pod_name": child} for child in node.get("children", [])],
    }

"""Follow a run on a KFP server to its end, show it, and terminate it."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from arcloop.display.terminal import console, print_line
from arcloop.errors import GATE_NOT_PASSED, INTERRUPTED, ArcloopError
from arcloop.kfp.server.client import KfpClient, UnavailableError

_FINAL = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_ACTIVE = ("PENDING", "RUNNING")
_POLLS_AFTER_END = 5
_LOG_LINES, _LOG_BYTES = 20, 65536
_GROUPS = r"root|condition-.*|exit-handler-\d+|for-loop-\d+|iteration.*"
"""Tasks that group others: KFP's names of dsl.If, dsl.ExitHandler and dsl.ParallelFor."""


class Task(NamedTuple):
    """A task of a run: its name, its state in words, and its time in seconds, if it has started."""

    name: str
    state: str
    seconds: float | None

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:,.0f} s"
        return f"{self.name:<20} {self.state:<10} {seconds}".rstrip()


def wait(client: KfpClient, run_id: str, command: str) -> int:
    """Follow a run to its end. Interrupting this command does not end the run.

    Args:
        client: The server.
        run_id: ID of the run.
        command: Command line that follows the run again, which is printed if this one ends early.

    Returns:
        0 if the run succeeded, 1 if it failed or was terminated, 3 if the gate did not pass, 130 if
        this command was interrupted.

    Raises:
        ArcloopError: The server refuses.
    """
    try:
        return _report(client, _follow(client, run_id))
    except KeyboardInterrupt:
        print_line(f"interrupted; the run continues. Follow it again with\n  {command}")
        return INTERRUPTED
    except ArcloopError:
        print_line(f"the run continues. Follow it again with\n  {command}")
        raise


def show_status(client: KfpClient, run_id: str) -> int:
    """Print the tasks and the state of a run once.

    Returns:
        The exit code of `wait` for a run that has ended, otherwise 0.

    Raises:
        ArcloopError: There is no such run, or the server refuses or does not answer.
    """
    run = _get(client, run_id)
    for task in tasks(run):
        print_line(str(task))
    if run.state in _FINAL:
        return _report(client, run)
    print_line(f"the run is {_words(run.state)}: {client.address(run_id)}")
    return 0


def terminate(client: KfpClient, run_id: str) -> int:
    """Terminate a run and wait until it has ended.

    Returns:
        0, also if the run had ended already.

    Raises:
        ArcloopError: There is no such run, or the server refuses.
    """
    run = _get(client, run_id)
    if run.state not in (*_FINAL, "CANCELING"):  # KFP refuses to terminate a run in these states
        client.call(client.runs.run_service_terminate_run, run_id)
        print_line("asked the server to terminate the run")
    run = _follow(client, run_id)
    print_line(f"the run has ended: {_words(run.state)}")
    return 0


def tasks(run: Any) -> list[Task]:
    """Return the tasks of a run in the order of their start.

    KFP lists the nodes of the Argo workflow. Each task of the pipeline is a node of its own name,
    with a second node `NAME-driver`, which prepares it.

    Args:
        run: A run of the API.
    """
    details = _nodes(run)
    names = {task.display_name for task in details}
    found = [
        task
        for task in details
        if f"{task.display_name}-driver" in names and not re.fullmatch(_GROUPS, task.display_name)
    ]
    never = datetime.max.replace(tzinfo=UTC)
    found.sort(key=lambda task: _time(task.start_time) or never)
    return [Task(task.display_name, _words(task.state), _seconds(task)) for task in found]


def _nodes(run: Any) -> list[Any]:
    """Return the nodes of the Argo workflow, as the API describes them."""
    return (run.run_details and run.run_details.task_details) or []


def _words(state: str | None) -> str:
    """Return a state of KFP in words. Argo's "Omitted" is unspecified in KFP."""
    known = {None: "not run", "RUNTIME_STATE_UNSPECIFIED": "not run", "CANCELING": "terminating"}
    return known.get(state) or str(state).lower()


def _time(value: datetime | None) -> datetime | None:
    """Return a time, or None if it is the zero time of Go or of KFP's database."""
    return value if value and value.year > 1970 else None


def _seconds(task: Any) -> float | None:
    if (start := _time(task.start_time)) is None:
        return None
    end = _time(task.end_time) or datetime.now(UTC)
    return max(0.0, (end - start).total_seconds())


def _get(client: KfpClient, run_id: str) -> Any:
    return client.call(client.runs.run_service_get_run, run_id)


def _follow(client: KfpClient, run_id: str) -> Any:
    """Poll a run until it has ended, show its tasks, and return it.

    KFP's persistence agent reports the state of the run before those of its tasks. After the end of
    the run, a few more polls are therefore made while a task seems to be active.
    """
    available, remaining = True, _POLLS_AFTER_END
    with _display() as show:
        while True:
            try:
                run = _get(client, run_id)
            except UnavailableError as cause:
                if available:
                    print_line(f"{cause.what}; trying again until it answers")
                available = False
            else:
                if not available:
                    print_line("the KFP API answers again")
                available = True
                show(tasks(run))
                if run.state in _FINAL:
                    remaining -= 1
                    if not remaining or not any(task.state in _ACTIVE for task in _nodes(run)):
                        return run
            time.sleep(client.settings.poll_s)


@contextlib.contextmanager
def _display() -> Iterator[Callable[[Sequence[Task]], None]]:
    """Yield a function that shows tasks: a table on a terminal, otherwise a line per change."""
    if console().is_terminal:
        from rich.live import Live
        from rich.text import Text

        with Live(console=console(), auto_refresh=False) as live:
            yield lambda shown: live.update(Text("\n".join(map(str, shown))), refresh=True)
        return
    states: dict[int, str] = {}

    def show(shown: Sequence[Task]) -> None:
        for number, task in enumerate(shown):
            if states.get(number) != task.state:
                states[number] = task.state
                print_line(str(task))

    yield show


def _report(client: KfpClient, run: Any) -> int:
    """Print the outcome of a run that has ended, and return the exit code."""
    address = client.address(run.run_id)
    if run.state in ("SUCCEEDED", "SKIPPED"):
        # Argo skips the group of the branch that is not taken and creates no node for its tasks.
        states = {task.display_name: task.state for task in _nodes(run)}
        skips = any(n.startswith("condition-") and s == "SKIPPED" for n, s in states.items())
        if skips and "deploy" not in states:
            print_line(f"the gate did not pass; not deployed: {address}")
            return GATE_NOT_PASSED
        print_line(f"the run succeeded: {address}")
        return 0
    # KFP reports a terminated run as failed. Only its history says that it was terminated.
    history = {run.state, *(status.state for status in run.state_history or [])}
    if history & {"CANCELING", "CANCELED"}:
        print_line(f"the run was terminated: {address}")
        return 1
    print_line(f"the run failed: {address}")
    try:
        _print_failures(client, run.run_id)
    except (ArcloopError, ValueError, KeyError, TypeError) as cause:
        print_line(f"its logs cannot be read: {str(cause).partition(chr(10))[0]}")
    return 1


def _print_failures(client: KfpClient, run_id: str) -> None:
    """Print the message and the end of the log of each pod that made a task fail.

    The v2beta1 API does not contain the names of the pods. The v1beta1 API of the same server
    contains the Argo workflow, from which KFP derives them.
    """
    answer = json.loads(client.read(f"/apis/v1beta1/runs/{run_id}"))
    workflow = json.loads(answer["pipeline_runtime"]["workflow_manifest"])
    nodes = workflow["status"].get("nodes", {})
    last: dict[str, Any] = {}  # the last attempt of each task
    for node in sorted(nodes.values(), key=lambda node: node.get("finishedAt") or ""):
        if node["type"] == "Pod" and node.get("phase") in ("Failed", "Error"):
            task = nodes.get(node.get("boundaryID"), {})
            driver = node["displayName"].endswith("-driver")
            if driver or task.get("phase") in ("Failed", "Error"):
                last[node["displayName"] if driver else task["displayName"]] = node
    namespace = workflow["metadata"].get("namespace", "")
    if not last:
        print_line(f"no task failed: {workflow['status'].get('message') or 'no message'}")
    for name, node in last.items():
        pod = pod_name(workflow, node)
        print_line(f"{name} failed: {node.get('message') or 'no message'}")
        lines = _log(client, run_id, pod, namespace).splitlines()[-_LOG_LINES:]
        for line in lines:
            print_line(f"  {line}")
        if not lines:
            print_line(f"  its log: kubectl logs {pod} --container main --namespace {namespace}")


def pod_name(workflow: dict[str, Any], node: dict[str, Any]) -> str:
    """Return the name of the pod of a node of an Argo workflow.

    Args:
        workflow: The workflow.
        node: A value of its status.nodes.
    """
    metadata = workflow["metadata"]
    annotations = metadata.get("annotations") or {}
    if annotations.get("workflows.argoproj.io/pod-name-format") == "v1":
        return str(node["id"])
    if metadata["name"] == node["name"]:
        return str(metadata["name"])
    template = "" if ".inline" in node["name"] else f"-{node['templateName']}"
    return f"{metadata['name']}{template}-{node['id'].rpartition('-')[2]}"


def _log(client: KfpClient, run_id: str, pod: str, namespace: str) -> str:
    """Return the end of the log of a pod, or "" if neither KFP's API nor its UI has it.

    The API server answers an error with status 200 and JSON. The UI, which does not forward this
    path, reads the log itself.
    """
    query = {"podname": pod, "runid": run_id, "podnamespace": namespace}
    for path, parameters in (
        (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", {}),
        ("/k8s/pod/logs", query),
    ):
        with contextlib.suppress(ArcloopError):
            text = client.read(path, _LOG_BYTES, **parameters).decode(errors="replace")
            if not re.match(r'\s*(\{"error_message"|<!doctype|<html)', text, flags=re.IGNORECASE):
                return text
    return ""

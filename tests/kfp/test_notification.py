"""Messages about runs of a KFP server, from the states and the pods that it makes.

Argo labels each pod with its workflow and annotates it with the name of its node (argo-workflows
v4.0.5, workflow/controller/workflowpod.go, createWorkflowPod). KFP passes the workflow's name as
`pipeline_job_resource_name` (backend/src/v2/driver/resolve.go, resolveInputParameter; argo.go,
runResourceName).
"""

import contextlib
import json
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import kubernetes
import pytest
from kfp.dsl.executor import Executor

from arcloop.errors import DataError
from arcloop.kfp import components
from arcloop.kfp.pod import notification, steps

from .loopback import serving

WORKFLOW = "arcloop-x7k2p"


def made_pod(node, phase, ended=None, *, age_s=0, **status):
    """A pod of a workflow, as the API server returns it."""
    terminated = None if ended is None else {"exitCode": 1, "reason": "Error", **ended}
    container = {
        "name": "main", "ready": False, "restartCount": 0, "image": "i", "imageID": "i",
        "state": {"terminated": terminated},
    }  # fmt: skip
    return {
        "metadata": {
            "name": f"{WORKFLOW}-{abs(hash(node)) % 10**9}",
            "creationTimestamp": f"2026-01-01T00:00:{50 - age_s:02}Z",
            "annotations": {"workflows.argoproj.io/node-name": f"{WORKFLOW}.{node}"},
        },
        "status": {"phase": phase, "containerStatuses": [container], **status},
    }


TRAIN = "root.exit-handler-1.train.executor"
KILLED = made_pod(TRAIN, "Failed", {"exitCode": 137, "reason": "OOMKilled"})


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A function: pods or a status to refuse with -> requests; this process is then in a pod."""

    def start(answer):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                url = urlsplit(self.path)
                requests.append((url.path, parse_qs(url.query)))
                refused = isinstance(answer, int)
                body = {"message": "forbidden"} if refused else {"items": answer}
                self.send_response(answer if refused else 200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

        configuration = kubernetes.client.Configuration()
        configuration.host = running.enter_context(serving(Handler))
        configuration.retries = False
        monkeypatch.setattr(
            kubernetes.config,
            "load_config",
            lambda: kubernetes.client.Configuration.set_default(configuration),
        )
        (tmp_path / "namespace").write_text("team\n")
        monkeypatch.setattr(notification, "_NAMESPACE", tmp_path / "namespace")
        monkeypatch.setenv("KFP_POD_NAME", "me")
        return requests

    with contextlib.ExitStack() as running:
        yield start


def send(state):
    """Run the exit task on what the driver passes, with kfp's own executor.

    backend/src/v2/driver/resolve.go, resolveInputParameter: the keys are those of the JSON of
    PipelineTaskFinalStatus, the state is that of the execution in ML Metadata, the error is empty.
    """
    status = {
        "state": state, "pipelineTaskName": "exit-handler-1",
        "pipelineJobResourceName": WORKFLOW, "error": {},
    }  # fmt: skip
    values = {"webhook_env": "ARCLOOP_WEBHOOK", "timeout_s": 5.0, "run_name": "things"}
    executor_input = {
        "inputs": {"parameterValues": {**values, "status": status}},
        "outputs": {"outputFile": "/dev/null"},
    }
    executor = Executor(executor_input, components.notify_failure)
    executor.write_executor_output = lambda _: None
    executor.execute()


def test_a_run_that_completed_is_not_reported(cluster, webhook):
    """test_data/.../pipeline_with_input_status_state.py asserts COMPLETE; kfp.local: SUCCEEDED."""
    requests = cluster([])
    for state in ("COMPLETE", "SUCCEEDED"):
        send(state)
    assert (webhook, requests) == ([], [])


def test_a_failed_run_is_reported_with_the_errors_of_its_tasks(cluster, webhook):
    requests = cluster([
        made_pod("root.exit-handler-1.prepare.executor", "Succeeded", {"exitCode": 0}),
        made_pod(TRAIN, "Failed", {"message": "train: the loss is not finite"}),
    ])  # fmt: skip
    send("FAILED")
    assert webhook == ["things: failed\ntrain: the loss is not finite"]
    ((path, query),) = requests
    assert path == "/api/v1/namespaces/team/pods"
    assert query["labelSelector"] == [f"workflows.argoproj.io/workflow={WORKFLOW}"]


def test_a_killed_pod_leaves_the_state_running(cluster, webhook):
    """Only the launcher publishes FAILED (launcher_v2.go, Execute); a killed one cannot."""
    cluster([KILLED])
    send("RUNNING")
    assert webhook == [f"things: failed\n{TRAIN}: OOMKilled, exit code 137"]


def test_a_success_with_a_condition_is_running_before_2_17(cluster, webhook):
    """Without a parent's update in metadata/client.go, UpdateDAGExecutionsState (2.14 to 2.16)."""
    cluster([
        made_pod(f"{TRAIN}(0)", "Failed", {"message": "preempted"}, age_s=9),
        made_pod(f"{TRAIN}(1)", "Succeeded", {"exitCode": 0}),
    ])  # fmt: skip
    send("RUNNING")
    assert webhook == []


def test_the_last_attempt_gives_the_reason(cluster, webhook):
    cluster([
        made_pod(f"{TRAIN}(1)", "Failed", {"message": "train: disk is full"}),
        made_pod(f"{TRAIN}(0)", "Failed", {"message": "train: first"}, age_s=9),
    ])  # fmt: skip
    send("FAILED")
    assert webhook == ["things: failed\ntrain: disk is full"]


def test_an_evicted_pod_has_a_reason_of_its_own(cluster, webhook):
    evicted = made_pod(TRAIN, "Failed", reason="Evicted", message="The node was low on memory.")
    cluster([evicted])
    send("FAILED")
    assert webhook == [f"things: failed\n{TRAIN}: Evicted, The node was low on memory."]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("FAILED", "failed"), ("RUNNING", "ended in the unclear state RUNNING")],
)
def test_a_restricted_service_account(cluster, webhook, capsys, state, outcome):
    cluster(403)
    send(state)
    reason = "its pods cannot be listed; see the logs of its tasks"
    assert webhook == [f"things: {outcome}\n{reason}"]
    assert "ApiException: (403)" in capsys.readouterr().out


def test_a_webhook_that_is_down_is_no_error(monkeypatch, capsys):
    monkeypatch.setenv("ARCLOOP_WEBHOOK", "http://127.0.0.1:9/secret")
    notification.post("ARCLOOP_WEBHOOK", 5.0, "text")
    printed = capsys.readouterr().out
    assert "the notification was not delivered: URLError" in printed
    assert "/secret" not in printed


def fail():
    raise DataError("the store has 1 error", where="store" + "é" * 5000)


def test_the_error_of_a_step_is_the_termination_message_of_its_pod(tmp_path, monkeypatch):
    """Argo keeps it: cmd/argoexec/main.go, main, writes only errors of its own."""
    file = tmp_path / "termination-log"
    monkeypatch.setattr(steps, "_TERMINATION_MESSAGE", file)
    with pytest.raises(DataError):
        steps.call("validate", fail)
    assert not file.exists()  # this process is not in a pod
    file.touch()
    with pytest.raises(DataError):
        steps.call("validate", fail)
    assert file.read_text().startswith("validate: the store has 1 error\n  where: storeé")
    assert 4090 < file.stat().st_size <= 4096


def test_a_pod_without_a_reason():
    lost = SimpleNamespace(
        metadata=SimpleNamespace(annotations=None, name="p", creation_timestamp=0),
        status=SimpleNamespace(phase="Failed", container_statuses=None, reason=None, message=None),
    )
    assert notification.failure_reasons([lost], WORKFLOW) == ["p: the pods report no reason"]

"""Training by a TrainJob, with the real client and a fake API server."""

import contextlib
import copy
import hashlib
import json
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import kubernetes
import pytest
import yaml

from arcloop.errors import DataError, ResourceError
from arcloop.kfp.pod import trainjob
from arcloop.kfp.submission import read_submission
from arcloop.pipeline.attempts import RETRY_INDEX, record_error

from .loopback import serving

BASE = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
NAME = "arcloop-train-" + hashlib.sha256(b"/mnt/arcloop/job.json").hexdigest()[:16]
VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}
READY = {"jobsStatus": [{"name": "node", "ready": 2, "active": 2, "succeeded": 0, "failed": 0,
                         "suspended": 0}]}  # fmt: skip


def condition(kind, reason="", message=""):
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


class Api:
    """The part of the Kubernetes API that serves TrainJobs.

    Attributes:
        states: The status of the job in the next answers; the last one stays. A number is an error
            status, "down" closes the connection without an answer.
        job: The job, or None.
        verbs: The verb of each request, as RBAC names it.
    """

    def __init__(self, states, running):
        self.states, self.job, self.verbs, self.queries = list(states), None, [], ""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do(self):
                verb = VERBS[self.command]
                path, _, query = self.path.partition("?")
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "0")
                api.verbs.append(verb)
                api.queries += f"{verb} {query} "
                name = api.job["metadata"]["name"] if api.job else NAME
                assert path == (BASE if verb == "create" else f"{BASE}/{name}"), path
                if (answer := getattr(api, verb)(sent, self.headers)) is not None:
                    content = json.dumps(answer[1]).encode()
                    self.send_response(answer[0])
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = do

        self.url = running.enter_context(serving(Handler))
        configuration = kubernetes.client.Configuration()
        configuration.host = self.url
        configuration.retries = False
        self.client = kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(configuration))

    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def create(self, body, headers):
        if self.states[0] == "refuse":
            return 403, {"message": "no rights"}
        if self.states[0] == "down":
            self.states.pop(0)
            return None
        if self.job:
            return 409, {"reason": "AlreadyExists"}
        self.job = body
        return 201, body

    def get(self, body, headers):
        state = self.state()
        if self.job is None or state == "gone":
            self.job = None
            return 404, {"message": "not found"}
        if isinstance(state, int):
            return state, {"message": "?"}
        return None if state == "down" else (200, {**self.job, "status": state})

    def patch(self, body, headers):
        assert headers["Content-Type"] == "application/merge-patch+json"  # RFC 7386
        self.job["metadata"] |= body["metadata"]
        return 200, self.job

    def delete(self, body, headers):
        """Foreground: the job stays, with a time stamp, until its pods have ended."""
        self.job["metadata"]["deletionTimestamp"] = "2026-11-28T12:00:00Z"
        return 200, {}


@pytest.fixture(scope="module")
def job(image):
    arguments = ["cluster=onprem", f"cluster.image={image}", "mode=compile"]
    arguments += ["cluster.train=trainjob", "cluster.trainjob.poll_s=0.01"]
    return json.loads(trainjob.make_job(read_submission(arguments).cluster))


@pytest.fixture
def serve():
    """A function: states -> an `Api`."""
    with contextlib.ExitStack() as running:
        yield lambda *states: Api(states, running)


@pytest.fixture
def run(job, serve):
    """A function that runs the job until its end and returns the `Api`."""

    def follow(*states, api=None):
        follow.api = api = api or serve(*states)
        trainjob.run_job(api.client, "team", copy.deepcopy(job), Path("/mnt/arcloop/job.json"))
        return api

    return follow


def test_the_nodes_read_the_job_file_and_unknown_fields_are_refused(run):
    api = run(condition("Complete"))
    assert api.job["spec"]["trainer"]["command"][-2:] == [
        "arcloop.pipeline.train_worker", "/mnt/arcloop/job.json",
    ]  # fmt: skip
    assert "create fieldValidation=Strict" in api.queries


def test_a_job_is_polled_until_its_end(run, capsys):
    api = run({}, READY, READY, 500, {**READY, **condition("Complete")})
    assert capsys.readouterr().out.splitlines() == [
        f"TrainJob team/{NAME}: created",
        f"TrainJob team/{NAME}: node ready=2 active=2",
        f"TrainJob team/{NAME}: the Kubernetes API does not answer (ApiException); waiting",
        f"TrainJob team/{NAME}: Complete, node ready=2 active=2",
    ]
    assert "delete propagationPolicy=Foreground" in api.queries


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (condition("Failed", "DeadlineExceeded", "too long"), "failed: DeadlineExceeded: too long"),
        ("gone", "failed: it was deleted"),
        (403, r"failed: its state cannot be read \(403 Forbidden\)"),
        ("refuse", r"was refused \(403 Forbidden\): no rights[\s\S]*kubeflow/rbac\.yaml"),
    ],
)
def test_a_job_that_failed_or_was_refused_is_kept_and_fails_the_step(run, state, message):
    with pytest.raises(ResourceError, match=message):
        run(*([READY] if state != "refuse" else []), state)
    assert "delete" not in run.api.verbs


def test_an_outage_of_the_api_is_waited_out(run):
    """More failed requests than a client's own retries, and no answer at the start either."""
    api = run("down", *[503] * 15, *["down"] * 15, READY, condition("Complete"))
    assert (api.verbs[:2], api.verbs[-1]) == (["create", "create"], "delete")


def test_an_outage_ends_with_the_deadline_of_the_job(run, job, monkeypatch):
    monkeypatch.setattr(trainjob, "monotonic", iter(range(0, 10**9, 10**5)).__next__)
    with pytest.raises(ResourceError, match="the Kubernetes API has not answered for 700000 s"):
        run(READY, *[503] * 20)
    assert "delete" not in run.api.verbs


def test_a_job_that_cannot_be_deleted_does_not_fail_the_training(run, serve, capsys):
    api = serve(condition("Complete"))
    api.delete = lambda body, headers: (500, {"message": "etcd"})
    run(api=api)
    text = f"was not deleted (ApiException); kubectl -n team delete trainjob {NAME}"
    assert text in capsys.readouterr().out


def test_a_retry_continues_with_the_job_of_an_earlier_attempt(run, serve, monkeypatch, capsys):
    """commonEnvs of backend/src/v2/compiler/argocompiler/common.go: KFP_POD_NAME, KFP_POD_UID."""
    api, owners = serve(), []
    for number, states in (("1", [401]), ("2", [READY, READY, condition("Complete")])):
        monkeypatch.setenv("KFP_POD_NAME", f"pod-{number}")
        monkeypatch.setenv("KFP_POD_UID", number)
        api.states = states
        with pytest.raises(ResourceError) if number == "1" else contextlib.nullcontext():
            run(api=api)
        owners += api.job["metadata"]["ownerReferences"]
    assert owners == [
        {"apiVersion": "v1", "kind": "Pod", "name": f"pod-{number}", "uid": number}
        for number in "12"
    ]
    assert api.verbs[2:] == ["create", "get", "patch", "get", "get", "delete"]
    assert "continues; an earlier attempt created it" in capsys.readouterr().out


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_retry_replaces_a_job_that_failed_or_is_being_deleted(run, serve, job, is_deleted):
    api = serve(*[READY if is_deleted else condition("Failed")] * 2, "gone", condition("Complete"))
    api.job = {"metadata": {"name": NAME}}
    if is_deleted:
        api.delete(None, None)
    run(api=api)
    assert "patch" not in api.verbs
    assert api.job["spec"] == {**job["spec"], "trainer": api.job["spec"]["trainer"]}
    assert api.verbs[-1] == "delete"


def test_an_error_of_a_node_that_would_occur_again_ends_the_retries(
    serve, job, tmp_path, monkeypatch
):
    run_dir = tmp_path / "run-1/train/run_out"
    api = serve(condition("Failed", "JobSetFailed", "a pod failed"))

    def fail_on_the_nodes(body, headers):
        with contextlib.suppress(DataError), record_error(run_dir):
            raise DataError("class 'a' has 1 image")
        return Api.get(api, body, headers)

    api.get = fail_on_the_nodes
    server = {"name": "c", "cluster": {"server": api.url}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    config = {"clusters": [server], "contexts": [context], "users": [{"name": "c", "user": {}}]}
    (tmp_path / "config").write_text(json.dumps({**config, "current-context": "c"}))
    (tmp_path / "namespace").write_text("team")
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(location, str(tmp_path / "config"))
    monkeypatch.setattr(trainjob, "_NAMESPACE", tmp_path / "namespace")
    for index in "01":
        monkeypatch.setenv(RETRY_INDEX, index)
        with pytest.raises(DataError, match="class 'a' has 1 image"):
            trainjob.train([], tmp_path / "store", run_dir, json.dumps(job))
    assert api.verbs == ["create", "get"]
    (file,) = tmp_path.rglob("run_out.job.json")
    assert json.loads(file.read_text())["run_dir"] == str(run_dir)


STEP = """
import json, sys
from pathlib import Path
import kubernetes
from arcloop.kfp.pod import trainjob

configuration = kubernetes.client.Configuration()
configuration.host = sys.argv[1]
api = kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(configuration))
trainjob.run_job(api, "team", json.loads(sys.argv[2]), Path("/mnt/arcloop/job.json"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_step_deletes_its_job_and_a_killed_one_leaves_it(serve, job, number):
    """Kill of workflow/executor/osspecific/signal_darwin.go in Argo sends SIGTERM to all processes
    of the step; signal_linux.go is a link to it."""
    api = serve(READY)
    process = subprocess.Popen(
        [sys.executable, "-c", STEP, api.url, json.dumps(job)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "ready=2" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("delete" in api.verbs) == (number != signal.SIGKILL)


def test_the_role_allows_exactly_the_calls(run, serve):
    role = next(yaml.safe_load_all((Path(__file__).parents[2] / "kubeflow/rbac.yaml").read_text()))
    (rule,) = role["rules"]
    api = serve(READY, READY, condition("Complete"))
    api.job = {"metadata": {"name": NAME}}
    assert set(rule["verbs"]) == set(run(api=api).verbs)
    assert (rule["apiGroups"], rule["resources"]) == (["trainer.kubeflow.org"], ["trainjobs"])
    assert BASE.startswith(f"/apis/{rule['apiGroups'][0]}/")

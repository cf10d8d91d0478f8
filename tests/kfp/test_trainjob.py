"""Training by a TrainJob, with the real client and a fake API server."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes
import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from arcloop.errors import ResourceError
from arcloop.kfp import trainjob
from arcloop.kfp.config import Toleration
from arcloop.kfp.submission import read_submission

BASE = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
READY = {"jobsStatus": [{"name": "node", "ready": 2, "active": 2, "succeeded": 0, "failed": 0,
                         "suspended": 0}]}  # fmt: skip


def condition(kind, reason="", message=""):
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


class Api:
    """Jobs go through `states`, one a look; each call's verb is kept as RBAC names it."""

    def __init__(self, states):
        self.states, self.created, self.deleted, self.verbs = list(states), [], [], []
        self.queries = ""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def reply(self, status, body):
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self):
                path, _, api.queries = self.path.partition("?")
                assert path == BASE
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.verbs.append("create")
                if api.states and api.states[0] == "refuse":
                    return self.reply(403, {"message": "no rights"})
                body["metadata"]["name"] = body["metadata"].pop("generateName") + "x1"
                api.created.append(body)
                return self.reply(201, body)

            def do_GET(self):
                assert self.path == f"{BASE}/arcloop-train-x1"
                api.verbs.append("get")
                state = api.states.pop(0) if len(api.states) > 1 else api.states[0]
                if isinstance(state, int):
                    return self.reply(state, {"message": "?"})
                return self.reply(200, {**api.created[0], "status": state})

            def do_DELETE(self):
                api.verbs.append("delete")
                api.deleted.append(self.path)
                self.reply(200, {})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        configuration = kubernetes.client.Configuration()
        configuration.host = f"http://127.0.0.1:{self.server.server_port}"
        configuration.retries = False
        self.client = kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(configuration))

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def settings(image):
    submission = read_submission(
        [
            "cluster=onprem", f"cluster.image={image}", "cluster.train=trainjob", "mode=compile",
            "cluster.namespace=team",
            "+cluster.secrets={bucket: {key: BUCKET_KEY}}", "cluster.trainjob.poll_s=0.01",
        ]
    )  # fmt: skip
    return submission.cluster


@pytest.fixture
def job(settings):
    return json.loads(trainjob.make_job(settings))


@pytest.fixture
def run(job):
    apis = []

    def follow(*states):
        apis.append(Api(states))
        trainjob.run_job(apis[-1].client, "team", job, Path("/mnt/arcloop/job.json"))
        return apis[-1]

    follow.apis = apis
    yield follow
    for api in apis:
        api.close()


def test_the_fields_of_the_job(job, image):
    spec = job["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    trainer = spec["trainer"]
    assert trainer["command"] == ["torchrun", "-m", "arcloop.pipeline.train_worker"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (image, 2, 1)
    wanted = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert trainer["resourcesPerNode"] == {"limits": wanted, "requests": wanted}
    (variable,) = trainer["env"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "bucket", "key": "key"}
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "arcloop"}
    assert pod["volumes"][1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"arcloop": "/mnt/arcloop", "shm": "/dev/shm"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


@pytest.mark.parametrize("full", [True, False])
def test_the_models_of_the_api_know_all_fields(settings, full):
    toleration = Toleration(key="a", effect="NoExecute", toleration_seconds=60)
    changes = {"tolerations": [toleration], "node_selector": {"a": "b"}, "env": {"N": 1}}
    if not full:
        changes = {"pull_secrets": [], "secrets": {}, "env": {}}
    text = trainjob.make_job(settings.model_copy(update=changes))
    assert json.loads(TrainerV1alpha1TrainJob.from_dict(json.loads(text)).to_json()) == json.loads(
        text
    )
    assert "null" not in text
    assert ("tolerationSeconds" in text) == full


def test_names_that_yaml_reads_as_other_types_stay_text(settings):
    names = {"env": {"ON": 1}, "pull_secrets": ["1e3"], "secrets": {"007": {"yes": "NO"}}}
    spec = json.loads(trainjob.make_job(settings.model_copy(update=names)))["spec"]
    plain, secret = spec["trainer"]["env"]
    assert plain == {"name": "ON", "value": "1"}
    assert secret == {"name": "NO", "valueFrom": {"secretKeyRef": {"name": "007", "key": "yes"}}}
    assert '[{"name": "1e3"}]' in json.dumps(spec)


def test_a_job_with_a_field_that_the_server_does_not_know_is_refused(run):
    assert "fieldValidation=Strict" in run(condition("Complete")).queries


def test_the_nodes_read_the_job_file(run):
    (made,) = run(condition("Complete")).created
    assert made["spec"]["trainer"]["command"] == [
        "torchrun", "-m", "arcloop.pipeline.train_worker", "/mnt/arcloop/job.json",
    ]  # fmt: skip


def test_a_job_is_polled_until_its_end(run, capsys):
    api = run({}, READY, READY, 500, {**READY, **condition("Complete")})
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "TrainJob team/arcloop-train-x1: created",
        "TrainJob arcloop-train-x1: node ready=2 active=2",
        "TrainJob arcloop-train-x1: Complete, node ready=2 active=2",
    ]
    assert api.deleted == [f"{BASE}/arcloop-train-x1?propagationPolicy=Foreground"]


def test_a_failed_job_fails_the_step_with_its_reason(run):
    with pytest.raises(ResourceError) as failed:
        run(READY, condition("Failed", "DeadlineExceeded", "ran too long"))
    assert "TrainJob arcloop-train-x1 failed: DeadlineExceeded: ran too long" in str(failed.value)
    assert run.apis[0].deleted == []


@pytest.mark.parametrize("status", [404, 503])
def test_a_job_whose_state_cannot_be_read(run, status):
    with pytest.raises(ResourceError, match="can no longer be read"):
        run(READY, status)
    assert run.apis[0].verbs.count("get") == (2 if status == 404 else 11)


def test_a_refused_job(run):
    with pytest.raises(ResourceError) as refused:
        run("refuse")
    assert "no rights" in str(refused.value)
    assert "kubeflow/rbac.yaml" in str(refused.value)


def test_a_stopped_step_deletes_its_job(run, monkeypatch):
    def stop(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("arcloop.kfp.trainjob.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run(READY)
    assert len(run.apis[0].deleted) == 1


def test_the_role_allows_exactly_the_calls(run):
    role = next(yaml.safe_load_all((Path(__file__).parents[2] / "kubeflow/rbac.yaml").read_text()))
    (rule,) = role["rules"]
    api = run(READY, condition("Complete"))
    assert set(rule["verbs"]) == set(api.verbs)
    assert (rule["apiGroups"], rule["resources"]) == (["trainer.kubeflow.org"], ["trainjobs"])
    assert re.match(
        rf"/apis/{rule['apiGroups'][0]}/\w+/namespaces/\w+/{rule['resources'][0]}", BASE
    )

"""Requests to the Model Registry, checked with the facts of its API v1alpha3.

They are in kubeflow/model-registry, api/openapi/model-registry.yaml: the paths with their methods,
the properties of the schemas RegisteredModelCreate, ModelVersionCreate and ModelArtifactCreate,
the pattern of IDs, and MetadataStringValue and MetadataDoubleValue without other keys.
"""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from arcloop.artifacts.writer import write_artifact
from arcloop.errors import ConfigError, ResourceError
from arcloop.kfp import registry
from arcloop.kfp.pipeline import compile_pipeline
from arcloop.kfp.submission import read_submission

BASE = "/api/model_registry/v1alpha3/"
RESOURCE = {"customProperties", "description", "externalId", "name"}
KNOWN = {
    "registered_models": RESOURCE
    | {"owner", "state", "readme", "maturity", "language", "tasks", "provider", "logo", "license",
       "licenseLink", "libraryName"},
    "model_versions": RESOURCE | {"state", "author", "registeredModelId"},
    "artifacts": RESOURCE
    | {"artifactType", "uri", "state", "modelFormatName", "modelFormatVersion", "storageKey",
       "storagePath", "serviceAccountName", "modelSourceKind", "modelSourceClass",
       "modelSourceGroup", "modelSourceId", "modelSourceName"},
}  # fmt: skip
REQUIRED = {"registered_models": {"name"}, "model_versions": {"name", "registeredModelId"}}
FIND = {"registered_model": "registered_models", "model_version": "model_versions",
        "model_artifact": "artifacts"}  # fmt: skip
VALUES = {"MetadataStringValue": ("string_value", str), "MetadataDoubleValue":
          ("double_value", float)}  # fmt: skip


def check(kind, body):
    assert body.keys() <= KNOWN[kind], body
    assert body.keys() >= REQUIRED.get(kind, set())
    assert body["name"]
    for value in body.get("customProperties", {}).values():
        key, type_ = VALUES[value["metadataType"]]
        assert value.keys() == {"metadataType", key}
        assert isinstance(value[key], type_)


@pytest.fixture
def server(monkeypatch):
    """A registry; `made` has its objects, `refuse` a status to answer with."""
    state = SimpleNamespace(made=[], refuse=None, tokens=[], unseen=set())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def reply(self, status, body):
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            url = urlsplit(self.path)
            query = {key: value for key, (value,) in parse_qs(url.query).items()}
            assert query.keys() <= {"name", "externalId", "parentResourceId"}
            kind = FIND[url.path.removeprefix(BASE)]
            parent = query.get("parentResourceId", "")
            found = [
                o
                for o in state.made
                if (o["kind"], o["name"], o["parent"]) == (kind, query["name"], parent)
            ]
            state.tokens.append(self.headers.get("Authorization"))
            if kind in state.unseen:  # another client creates the object after this request
                state.unseen.remove(kind)
                found = []
            self.reply(*((200, found[0]) if found else (404, {"message": "not found"})))

        def do_POST(self):
            path = self.path.removeprefix(BASE)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kind = path.rpartition("/")[2]
            check(kind, body)
            parent = body.get("registeredModelId", "")
            if nested := re.fullmatch(r"model_versions/([1-9][0-9]{0,8})/artifacts", path):
                parent = nested[1]
                assert body["artifactType"] == "model-artifact"
            else:
                assert path in ("registered_models", "model_versions")
            if parent:
                assert any(o["id"] == parent for o in state.made)
            if state.refuse:
                return self.reply(state.refuse, {"message": "no"})
            if any(
                (o["kind"], o["name"], o["parent"]) == (kind, body["name"], parent)
                for o in state.made
            ):
                return self.reply(409, {"message": "exists"})
            made = {**body, "id": str(len(state.made) + 1), "kind": kind, "parent": parent}
            state.made.append(made)
            return self.reply(201, made)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=running.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{running.server_port}"
    yield state
    running.shutdown()
    running.server_close()


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    """A function: URL, the run that is live -> ID of the version."""
    file = tmp_path / "model_store/things/things-1.mar"
    live = SimpleNamespace(version="20260101T000000Z-abc", path=file)
    with write_artifact(tmp_path / "evaluation", "evaluation", config={}, parents={"run": "r1"}):
        pass
    monkeypatch.setenv("ARCLOOP_STORES", str(tmp_path))
    monkeypatch.setattr("arcloop.serving.model_store.ModelStore.live", lambda self: live)

    def register(url, run="r1"):
        manifest = {"parents": {"run": run}}
        monkeypatch.setattr("arcloop.serving.archive.read_manifest", lambda path: manifest)
        metadata = {"git": "c0ffee", "metric.top1": 1, "sha256": "x", "display_name": "y"}
        return registry.register(
            url, "pvc://arcloop", "run-7", ["name=things"], tmp_path / "evaluation", metadata
        )

    return register


def test_a_version_is_registered_once(server, deployed):
    assert deployed(server.url) == deployed(server.url + "/")
    model, version, artifact = server.made
    assert (model["kind"], model["name"]) == ("registered_models", "things")
    assert version["registeredModelId"] == model["id"]
    assert version["customProperties"] == {
        "run": {"metadataType": "MetadataStringValue", "string_value": "r1"},
        "kfp_run": {"metadataType": "MetadataStringValue", "string_value": "run-7"},
        "git": {"metadataType": "MetadataStringValue", "string_value": "c0ffee"},
        "metric.top1": {"metadataType": "MetadataDoubleValue", "double_value": 1.0},
    }
    assert artifact["uri"] == "pvc://arcloop/model_store/things/things-1.mar"
    assert (artifact["modelSourceId"], artifact["parent"]) == ("run-7", version["id"])


def test_an_object_that_another_client_creates_is_used(server, deployed):
    deployed(server.url)
    server.unseen |= set(FIND.values())
    deployed(server.url)
    assert len(server.made) == 3


def test_a_token_is_sent_if_there_is_one(server, deployed, monkeypatch):
    deployed(server.url)
    monkeypatch.setenv(registry.TOKEN, "s3cret")
    deployed(server.url)
    assert server.tokens == [None] * 3 + ["Bearer s3cret"] * 3


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, registry.TOKEN), (500, "the run is deployed")]
)
def test_a_refusal_is_one_error(server, deployed, status, remedy):
    server.refuse = status
    with pytest.raises(ResourceError, match=f"answers {status}") as refused:
        deployed(server.url)
    assert remedy in str(refused.value)


def test_a_registry_that_does_not_answer_is_one_error(deployed):
    with pytest.raises(ResourceError, match="does not answer"):
        deployed("http://127.0.0.1:9")


def test_a_run_that_is_no_longer_live_is_not_registered(server, deployed):
    with pytest.raises(ResourceError, match="another run was deployed"):
        deployed(server.url, run="r2")
    assert server.made == []


def test_the_task_follows_the_deployment(image, tmp_path):
    submission = read_submission(
        ["cluster=onprem", f"cluster.image={image}", "cluster.model_registry=http://reg:8080"]
    )
    compile_pipeline(submission.cluster, submission.notify, tmp_path / "p.yaml")
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    (tasks,) = [dag["dag"]["tasks"] for dag in spec["components"].values()
                if "register" in dag.get("dag", {}).get("tasks", ())]  # fmt: skip
    assert tasks["register"]["dependentTasks"] == ["deploy"]
    values = tasks["register"]["inputs"]["parameters"]
    assert values["root"] == {"runtimeValue": {"constant": "pvc://arcloop"}}
    assert values["run_id"] == {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors["exec-register"]["pvcMount"][0]["mountPath"] == "/mnt/arcloop"


def test_the_registry_must_be_a_url(image):
    with pytest.raises(ConfigError, match=r"cluster\.model_registry"):
        read_submission(["cluster.model_registry=registry:8080"])

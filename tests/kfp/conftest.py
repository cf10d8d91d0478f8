"""Local runs of the pipeline, and a fake KFP server."""

import email
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_pb
from kfp.pipeline_spec import pipeline_spec_pb2 as pb

from arcloop.kfp.local import run_pipeline, start_fork_server
from arcloop.kfp.pod import compute_fingerprint
from arcloop.kfp.submission import read_submission

SMALL = [
    "data=synthetic", "data.train=240", "data.val=60", "data.gallery=90", "data.query=60",
    "data.num_classes=3", "data.image_size=16", "data.shard_rows=64", "loader.batch_size=40",
    "trainer.max_epochs=2", "backbone.widths=[8,8]", "embedder.embedding_dim=16",
    "evaluate.num_projected=50", "evaluate.num_mistakes=4",
]  # fmt: skip
IMAGE = "registry.example/arcloop@sha256:" + "0123456789abcdef" * 4


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def image():
    return IMAGE


@pytest.fixture
def in_folder(tmp_path_factory, monkeypatch, request):
    """The folder that local runs of a module share, and with it their cache."""
    name = request.module.__name__.rpartition(".")[2]
    folder = tmp_path_factory.getbasetemp() / name
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


class LocalResult(NamedTuple):
    """The outcome of a local run, as the command prints it."""

    states: dict
    evaluation: Path
    passed: bool


@pytest.fixture
def run_local(in_folder, capsys):
    """A function: overrides -> the `LocalResult` of the pipeline.

    The compiled file is run without parameters, as from KFP's UI.
    """
    from arcloop.kfp.pipeline import FINGERPRINT, compile_pipeline

    start_fork_server()

    def run(*overrides, without="-"):
        small = [override for override in SMALL if not override.startswith(without)]
        submission = read_submission([*small, *overrides])
        defaults = dict(submission.parameters)
        if submission.cluster.fingerprint == "client":
            defaults[FINGERPRINT] = compute_fingerprint(submission.parameters["data"])
        compile_pipeline(submission.cluster, submission.notify, submission.path, defaults)
        capsys.readouterr()
        passed = run_pipeline(submission.path, {}, Path("runs/pipelines"), cache=True)
        lines = [line.partition(": ") for line in capsys.readouterr().err.splitlines()]
        printed = {name: value.partition(",")[0] for name, _, value in lines}
        (verdict,) = (name for name in printed if name.startswith("the gate"))
        assert verdict == ("the gate passed" if passed else "the gate did not pass; not deployed")
        states = {n: s for n, s in printed.items() if s in ("ran", "from the cache")}
        return LocalResult(states, Path(printed["report"]).parent, passed)

    return run


@dataclass
class Recorder:
    """A fake server of the v2beta1 API that validates requests with KFP's schemas.

    Attributes:
        url: Where it listens.
        calls: (method, path) of every request.
        refusals: (method, path) -> (status, body) to answer instead.
        delay_s: Wait before every answer.
    """

    url: str = ""
    calls: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    refusals: dict = field(default_factory=dict)
    delay_s: float = 0.0
    experiments: list = field(default_factory=list)
    pipelines: list = field(default_factory=list)
    versions: list = field(default_factory=list)
    runs: list = field(default_factory=list)
    recurring: list = field(default_factory=list)

    def count(self, method, path):
        return self.calls.count((method, path))

    # The methods below answer requests; `query` and `body` are parsed.

    def get_experiments(self, query, body):
        return {"experiments": matching(self.experiments, query)}

    def post_experiments(self, query, body):
        strictly(body, kfp_server_api.V2beta1Experiment)
        return keep(self.experiments, "experiment_id", body)

    def get_pipelines(self, query, body):
        return {"pipelines": matching(self.pipelines, query)}

    def post_pipelines(self, query, body):
        strictly(body, kfp_server_api.V2beta1Pipeline)
        return keep(self.pipelines, "pipeline_id", body)

    def post_pipelines_upload_version(self, query, content):
        version = {
            "pipeline_id": query["pipelineid"],
            "display_name": query["name"],
            "spec": parsed(content),
        }
        keep(self.versions, "pipeline_version_id", version)
        return {key: value for key, value in version.items() if key != "spec"}

    def get_versions(self, pipeline_id, query):
        own = [v for v in self.versions if v["pipeline_id"] == pipeline_id]
        return {
            "pipeline_versions": [
                {k: x for k, x in v.items() if k != "spec"} for v in matching(own, query)
            ]
        }

    def post_runs(self, query, body):
        strictly(body, kfp_server_api.V2beta1Run)
        self._check_runtime(body)
        return keep(self.runs, "run_id", body)

    def post_recurringruns(self, query, body):
        strictly(body, kfp_server_api.V2beta1RecurringRun)
        strictly(body["trigger"], kfp_server_api.V2beta1Trigger)
        strictly(body["trigger"]["cron_schedule"], kfp_server_api.V2beta1CronSchedule)
        self._check_runtime(body)
        return keep(self.recurring, "recurring_run_id", body)

    def get_recurringruns(self, query, body):
        return {"recurringRuns": matching(self.recurring, query)}  # camel case, as the server does

    def delete_recurringrun(self, name):
        self.recurring = [run for run in self.recurring if run["recurring_run_id"] != name]
        return {}

    def _check_runtime(self, body):
        """The parameters are those of the version that is named."""
        strictly(body["pipeline_version_reference"], kfp_server_api.V2beta1PipelineVersionReference)
        strictly(body["runtime_config"], kfp_server_api.V2beta1RuntimeConfig)
        wanted = body["pipeline_version_reference"]["pipeline_version_id"]
        (version,) = [v for v in self.versions if v["pipeline_version_id"] == wanted]
        values = body["runtime_config"]["parameters"]
        json_format.ParseDict({"parameterValues": values}, pb.PipelineJob.RuntimeConfig())
        known = version["spec"].root.input_definitions.parameters
        assert values.keys() <= known.keys()
        for name, definition in known.items():
            assert name in values or definition.is_optional
            if definition.parameter_type == pb.ParameterType.LIST and name in values:
                assert all(isinstance(item, str) for item in values[name])


def strictly(body, model):
    """Refuse keys that the API's model does not have."""
    assert body.keys() <= set(model.attribute_map.values()), body.keys()


def keep(things, key, body):
    body[key] = f"{key}-{len(things) + 1}"
    things.append(body)
    return body


def matching(things, query):
    found = list(things)
    if "filter" in query:
        (predicate,) = json.loads(query["filter"])["predicates"]
        found = [t for t in found if t[predicate["key"]] == predicate["stringValue"]]
    if "namespace" in query:
        found = [t for t in found if t.get("namespace") == query["namespace"]]
    return found[::-1] if query.get("sort_by", "").endswith("desc") else found


def parsed(content):
    """The uploaded YAML as PipelineSpec, its platform part as KubernetesExecutorConfigs."""
    spec, *platform = yaml.safe_load_all(content)
    for document in platform:
        json_format.ParseDict(document, pb.PlatformSpec())
        for part in document["platforms"].values():
            for executor in part["deploymentSpec"]["executors"].values():
                json_format.ParseDict(executor, kubernetes_pb.KubernetesExecutorConfig())
    return json_format.ParseDict(spec, pb.PipelineSpec())


def uploaded_file(headers, content):
    """The one file of a multipart body."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    (part,) = email.message_from_bytes(head + content).get_payload()
    return part.get_payload(decode=True)


def handler_of(recorder):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self):
            url = urlsplit(self.path)
            path = url.path.removeprefix("/apis/v2beta1/")
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recorder.calls.append((self.command, path))
            recorder.headers.append(dict(self.headers))
            time.sleep(recorder.delay_s)
            status, body = recorder.refusals.get((self.command, path), (200, None))
            if body is None:
                try:
                    body = self.dispatch(path, query, content)
                except Exception as refused:  # noqa: BLE001 - strictness is the server's refusal
                    status, body = 400, {"message": repr(refused)}
            answer = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def dispatch(self, path, query, content):
            if path.startswith("pipelines/") and path.endswith("/versions"):
                return recorder.get_versions(path.split("/")[1], query)
            if self.command == "DELETE":
                return recorder.delete_recurringrun(path.split("/")[1])
            body = None
            if "upload" in path:
                body = uploaded_file(self.headers, content)
            elif content:
                body = json.loads(content)
            name = f"{self.command}_{path.replace('/', '_')}".lower()
            return getattr(recorder, name)(query, body)

        do_GET = do_POST = do_DELETE = answer

    return Handler


def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def recorder():
    made = Recorder()
    server = serving(handler_of(made))
    made.url = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def webhook(monkeypatch):
    """A webhook on loopback; yields the texts that were posted to it."""
    texts = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

    server = serving(Handler)
    monkeypatch.setenv("ARCLOOP_WEBHOOK", f"http://127.0.0.1:{server.server_port}/secret")
    yield texts
    server.shutdown()
    server.server_close()

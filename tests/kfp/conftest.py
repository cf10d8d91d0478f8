"""Fixtures: local runs of the pipeline, and a fake KFP server."""

import functools
import inspect
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from kfp.dsl import pipeline_task

from arcloop.kfp.local import run_pipeline, start_fork_server
from arcloop.kfp.submission import read_submission, resolve_parameters

from .api_server import Recorder
from .loopback import ApiHandler, serving

SMALL = [
    "data=synthetic", "data.train=240", "data.val=60", "data.gallery=90", "data.query=60",
    "data.num_classes=3", "data.image_size=16", "data.shard_rows=64", "loader.batch_size=40",
    "trainer.max_epochs=2", "backbone.widths=[8,8]", "embedder.embedding_dim=16",
    "evaluate.num_projected=50", "evaluate.num_mistakes=4",
]  # fmt: skip
IMAGE = "registry.example/arcloop@sha256:" + "0123456789abcdef" * 4


@pytest.fixture(scope="session", autouse=True)
def stack_without_source():
    """Let kfp find the name of a caller without reading the source of every frame.

    For each setting of a task, it calls `inspect.stack`. Below the frames of pytest, that takes
    most of the time of a compilation.
    """
    stack = functools.partial(inspect.stack, context=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=stack))
        yield


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def image():
    return IMAGE


@pytest.fixture(scope="session")
def cluster_settings():
    """The settings of a cluster with a KFP server."""
    return read_submission(["cluster=onprem", f"cluster.image={IMAGE}"]).cluster


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
    from arcloop.kfp.pipeline import compile_pipeline

    start_fork_server()

    def run(*overrides):
        submission = read_submission([*SMALL, *overrides])
        defaults = resolve_parameters(submission)
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


@pytest.fixture(scope="session")
def api_url():
    """The URL of the fake KFP server; with one URL, equal commands are composed once."""
    with serving(ApiHandler) as url:
        yield url


@pytest.fixture
def recorder(api_url, monkeypatch):
    made = Recorder(api_url)
    monkeypatch.setattr(ApiHandler, "recorder", made)
    return made


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

    with serving(Handler) as url:
        monkeypatch.setenv("ARCLOOP_WEBHOOK", f"{url}/secret")
        yield texts

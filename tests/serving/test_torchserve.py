"""Features of TorchServe only: the management API, metrics, and restarted workers."""

import json
import os
import signal
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from arcloop.errors import ResourceError
from arcloop.runtime.golden_batch import GoldenBatch
from arcloop.runtime.images import encode_png
from arcloop.runtime.searcher import read_index
from arcloop.serving.servers.client import require_parity
from arcloop.serving.servers.process import TorchServe


@pytest.fixture
def served(servers):
    return servers("torchserve")


def send(port, method, path):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.java
def test_models_cannot_be_registered_or_removed(served):
    server, live = served
    port = server.settings.management_port
    for method, path in (
        ("POST", f"/models?url={live.path.name}&model_name=other"),
        ("POST", "/models?url=http://127.0.0.1:1/evil.mar"),
        ("DELETE", "/models/synthetic"),
    ):
        status, _ = send(port, method, path)
        assert 400 <= status < 500, (method, path)
    _, text = send(port, "GET", "/models")
    assert [model["modelName"] for model in json.loads(text)["models"]] == ["synthetic"]


@pytest.mark.java
def test_metrics(served):
    status, text = send(served[0].settings.metrics_port, "GET", "/metrics")
    assert status == 200
    assert b"ts_inference_requests_total" in text


@pytest.mark.java
def test_a_killed_worker_is_restarted(served, small_run):
    server, live = served
    _, text = send(server.settings.management_port, "GET", "/models/synthetic")
    os.kill(json.loads(text)[0]["workers"][0]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.ready() and time.monotonic() < deadline:
        time.sleep(0.02)  # until the front end has detected it
    image = encode_png(np.load(small_run / "golden.npz")["images"][0])
    status, _ = server.endpoint.predict(image, 5)  # waits in the queue
    assert status == 200
    index = read_index(small_run / "index/faiss_index.bin")
    server.wait_until_ready()
    require_parity(
        server.endpoint, GoldenBatch(small_run / "golden.npz", index, tolerance=1e-4), live.version
    )


def test_java_must_be_installed_and_recent(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match="needs Java 17, but Java is not installed"):
        TorchServe.require()
    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin/java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    with pytest.raises(ResourceError, match=r'this is openjdk version "11\.0\.2"'):
        TorchServe.require()

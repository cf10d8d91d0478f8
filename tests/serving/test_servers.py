"""Both servers as running processes: the same requests get the same answers."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import yaml

from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.runtime.golden_batch import GoldenBatch
from arcloop.runtime.images import encode_png
from arcloop.runtime.predictor import Predictor, PredictRequest
from arcloop.runtime.searcher import read_index
from arcloop.serving.deploy import deploy
from arcloop.serving.model_store import ModelStore
from arcloop.serving.serve import SERVERS
from arcloop.serving.serve import main as serve
from arcloop.serving.servers.client import require_parity
from arcloop.serving.servers.entrypoint import send_request
from arcloop.serving.servers.process import FastApiServer, TorchServe
from arcloop.serving.settings import PORTS

from .mutations import Mutations

SERVING = Path(__file__).parents[2] / "serving"
BOTH = [pytest.param("torchserve", marks=pytest.mark.java), "fastapi"]
PATH = "/predictions/synthetic"
FORM = {"Content-Type": "multipart/form-data; boundary=frontier"}


@pytest.fixture(params=BOTH)
def served(request, servers):
    """A running server and its live version."""
    return servers(request.param)


@pytest.fixture(scope="module")
def images(small_run):
    return [encode_png(image) for image in np.load(small_run / "golden.npz")["images"]]


def golden(run, file=None):
    index = read_index(run / "index/faiss_index.bin")
    return GoldenBatch(file or run / "golden.npz", index, tolerance=1e-4)


def send(served, method, path, body=None, headers=None):
    place = urlsplit(served[0].endpoint.url).netloc
    connection = http.client.HTTPConnection(place, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def form(**fields):
    lines = []
    for name, value in fields.items():
        lines += [b"--frontier", f'Content-Disposition: form-data; name="{name}"'.encode(), b"",
                  value]  # fmt: skip
    return b"\r\n".join([*lines, b"--frontier--", b""])


def test_the_golden_batch_gets_the_answers_of_the_run(served, small_run):
    server, live = served
    require_parity(server.endpoint, golden(small_run), live.version)


def test_the_parity_check_detects_a_difference(served, small_run, tmp_path):
    server, live = served
    with pytest.raises(ArtifactError, match="it answers with version"):
        require_parity(server.endpoint, golden(small_run), "another")
    with np.load(small_run / "golden.npz") as stored:
        np.savez(tmp_path / "golden.npz", images=stored["images"],
                 embeddings=np.roll(stored["embeddings"], 1, axis=0))  # fmt: skip
    with pytest.raises(ArtifactError, match="the server fails the parity check: golden image"):
        require_parity(server.endpoint, golden(small_run, tmp_path / "golden.npz"), live.version)


def test_answers_are_those_of_the_archived_predictor(served, images, tmp_path):
    """The bytes are equal, so both servers give the same answers."""
    with zipfile.ZipFile(served[1].path) as packed:
        packed.extractall(tmp_path)
    settings = yaml.safe_load((tmp_path / "model-config.yaml").read_bytes())["handler"]
    predictor = Predictor(tmp_path, settings)
    for body, k in ((images[0], "3"), (b"junk", None), (images[1], "0"), (images[2][:60], "5")):
        (expected,) = predictor.predict([PredictRequest(body, k)])
        headers = {"x-arcloop-k": k} if k else {}
        assert send(served, "POST", PATH, body, headers) == (expected.status, expected.body)


def test_body_and_form_give_the_same_answer(served, images):
    raw = send(served, "POST", PATH, images[0], {"Content-Type": "image/png"})
    put = send(served, "PUT", PATH, images[0])
    assert raw[0] == 200
    assert raw == put
    assert len(json.loads(raw[1])["neighbours"]) == 5
    for name in ("image", "data"):
        assert send(served, "POST", PATH, form(**{name: images[0]}), FORM) == raw
    three = send(served, "POST", PATH, form(image=images[0], k=b"3"), FORM)
    assert len(json.loads(three[1])["neighbours"]) == 3
    assert three == send(served, "POST", PATH, images[0], {"X-Arcloop-K": "3"})


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"", {}, "empty"),
        (b"no image", {}, "not an image"),
        (b'{"a": 1}', {"Content-Type": "application/json"}, "not"),
        (b"{", {"Content-Type": "application/json"}, "not an image"),
        (b"\xff", {"Content-Type": "text/plain"}, "not an image"),
        (form(), FORM, "0 images"),
        (form(image=b"x", data=b"y"), FORM, "2 images"),
        (form(other=b"x"), FORM, "0 images"),
    ],
)
def test_a_bad_request_gets_400_and_a_reason(served, body, headers, reason):
    status, text = send(served, "POST", PATH, body, headers)
    assert status == 400
    assert reason in json.loads(text)["error"]


@pytest.mark.parametrize("k", ["0", "101", "1e9", "-1", "9" * 500])
def test_an_invalid_k_gets_400_and_a_reason(served, images, k):
    status, text = send(served, "POST", PATH, images[0], {"x-arcloop-k": k})
    assert status == 400
    assert "must be a number from 1 to 100" in json.loads(text)["error"]


def test_a_body_over_the_limit(served):
    try:
        status, _ = send(served, "POST", PATH, b"x" * 60_000)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused before the body was complete
    assert status == 413


def test_another_model_name_is_not_found(served, images):
    assert send(served, "POST", "/predictions/other", images[0])[0] == 404


def test_bad_requests_do_not_affect_others_of_the_batch(served, images):
    alone = [json.loads(send(served, "POST", PATH, image)[1]) for image in images[:8]]
    bodies = [images[n % 8] if n % 5 else images[n % 8][: n + 20] for n in range(200)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda body: send(served, "POST", PATH, body), bodies))
    for number, (status, text) in enumerate(replies):
        if number % 5:
            assert status == 200
            answer, expected = json.loads(text), alone[number % 8]
            assert answer["label"] == expected["label"]
            assert answer["similarity"] == pytest.approx(expected["similarity"], abs=1e-5)
        else:
            assert status == 400


CASES = 1000
REPEATED = 400
CLIENTS = 8
MOST_GROWTH = 24 * 2**20
# TorchServe's own form parser, in Java, answers these with 500 instead of 400.
FAULTS_OF_TORCHSERVE = {
    "ErrorDataDecoderException", "StringIndexOutOfBoundsException",
    "ArrayIndexOutOfBoundsException",
}  # fmt: skip


def resident(processes):
    return sum(process.memory_info().rss for process in processes)


def test_mutated_requests_do_not_break_the_server(served):
    server, kind = served[0], served[0].name
    mutations = Mutations(0)
    cases = [mutations.case() for _ in range(CASES)]
    local, opened = threading.local(), []

    def send_case(case):
        body, headers = case
        if not hasattr(local, "connection"):
            place = ("127.0.0.1", server.settings.inference_port)
            local.connection = http.client.HTTPConnection(*place, timeout=30)
            opened.append(local.connection)
        try:
            local.connection.request("POST", PATH, body, headers)
            response = local.connection.getresponse()
            text = response.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            local.connection.close()  # refused before the body was read
            return "closed"
        if response.status == 200:
            return 200
        answer = json.loads(text)
        if answer.get("type") in FAULTS_OF_TORCHSERVE and "multipart" in headers["Content-Type"]:
            return f"{response.status} of {kind}'s parser"
        assert "error" in answer or "message" in answer
        return response.status

    first = psutil.Process(server.process.pid)
    family = {first, *first.children(recursive=True)}
    python = [process for process in family if "java" not in process.name()]
    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = Counter(pool.map(send_case, cases))
        warm = resident(python)
        statuses.update(pool.map(send_case, cases[:REPEATED]))
        growth = resident(python) - warm
    for connection in opened:
        connection.close()
    assert growth < MOST_GROWTH
    known = {200, 400, 413, "closed", "500 of torchserve's parser"}
    assert set(statuses) <= known, statuses
    assert statuses[200] > 50  # after some mutations the image is still valid
    assert statuses[400] > CASES / 2
    assert statuses["closed"] < CASES / 20, statuses
    assert {first, *first.children(recursive=True)} == family
    assert server.ready()


def family(served):
    process = psutil.Process(served[0].process.pid)
    return {process.pid, *(child.pid for child in process.children(recursive=True))}


def listening(pid):
    """Return the addresses a process listens on, from the kernel's tables."""
    return {
        connection.laddr._replace(ip=connection.laddr.ip.removeprefix("::ffff:"))
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_only_the_inference_port_is_open_to_others(served):
    """Read from the kernel's tables, not from the server's config."""
    settings = served[0].settings
    addresses = {address for pid in family(served) for address in listening(pid)}
    ours = {address.port for address in addresses}
    own = {settings.inference_port} if type(served[0]) is FastApiServer else {
        getattr(settings, port) for port in PORTS}  # fmt: skip
    assert ours == own
    assert {a.port for a in addresses if a.ip != "127.0.0.1"} == {settings.inference_port}
    outside = [
        address.address
        for of_interface in psutil.net_if_addrs().values()
        for address in of_interface
        if address.family == socket.AF_INET
    ]
    for ip in {*outside, "127.0.0.2"} - {"127.0.0.1"}:
        socket.create_connection((ip, settings.inference_port), timeout=5).close()
        for port in set(PORTS) - {"inference_port"}:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((ip, getattr(settings, port)), timeout=5)


def test_a_port_in_use_is_reported_before_the_server_starts(served, tmp_path):
    server, live = served
    second = type(server)(server.settings, live.path, tmp_path)
    with pytest.raises(ConfigError, match=r"deploy\.inference_port"), second:
        pass


@pytest.mark.java
def test_torchserve_registers_and_removes_no_models(servers):
    server, live = servers("torchserve")
    models = f"http://127.0.0.1:{server.settings.management_port}/models"
    for method, query in (
        ("POST", f"?url={live.path.name}&model_name=other"),
        ("POST", "?url=http://127.0.0.1:1/evil.mar"),
        ("DELETE", "/synthetic"),
    ):
        status, _ = send_request(method, models + query, 30)
        assert 400 <= status < 500, (method, query)
    _, text = send_request("GET", models, 30)
    assert [model["modelName"] for model in json.loads(text)["models"]] == ["synthetic"]


@pytest.mark.java
def test_torchserve_restarts_a_killed_worker(servers, small_run, images):
    server, live = servers("torchserve")
    management = f"http://127.0.0.1:{server.settings.management_port}"
    _, text = send_request("GET", f"{management}/models/synthetic", 30)
    os.kill(json.loads(text)[0]["workers"][0]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.ready() and time.monotonic() < deadline:
        time.sleep(0.02)  # until the front end has detected it
    status, _ = server.endpoint.predict(images[0], 5)  # waits in the queue
    assert status == 200
    server.wait_until_ready()
    require_parity(server.endpoint, golden(small_run), live.version)


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


@pytest.mark.parametrize("kind", BOTH)
def test_an_archive_that_was_changed_is_rejected(kind, small_run, make_settings, tmp_path):
    """A label in the archive was changed after it became live."""
    settings = make_settings(tmp_path / "store")
    live = deploy(small_run, settings, force=False)
    with zipfile.ZipFile(live.path) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    parts["faiss_label.json"] = parts["faiss_label.json"].replace(b"class-0", b"class-9")
    with zipfile.ZipFile(live.path, "w") as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    server = SERVERS[kind](settings, live.path, tmp_path)
    with pytest.raises(ArtifactError, match=r"faiss_label\.json has changed"), server:
        server.wait_until_ready()


@pytest.mark.parametrize("kind", BOTH)
def test_a_file_that_was_appended_to_an_archive_is_not_executed(
    kind, small_run, make_settings, tmp_path
):
    settings = make_settings(tmp_path / "store")
    live = deploy(small_run, settings, force=False)
    with zipfile.ZipFile(live.path, "a") as packed:
        packed.writestr("pandas.py", f"open({str(tmp_path / 'executed')!r}, 'w')")
        packed.writestr("torch.py", f"open({str(tmp_path / 'executed')!r}, 'w')")
    server = SERVERS[kind](settings, live.path, tmp_path)
    fault = r"its manifest does not list: \['pandas\.py', 'torch\.py'\]"
    with pytest.raises(ResourceError, match=fault), server:
        server.wait_until_ready()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("environment", "output", "end"),
    [
        pytest.param({}, "live and serving", signal.SIGKILL, marks=pytest.mark.java),
        (
            {"JAVA_HOME": "/nowhere"},
            "Java is not installed; serving with .*try the model in a browser",
            signal.SIGTERM,
        ),
    ],
)
def test_serve_prints_a_working_request_and_leaves_no_process(
    environment, output, end, small_run, make_settings, images, tmp_path
):
    """`tests.serving.kubernetes.test_pod` ends TorchServe by SIGTERM."""
    settings = make_settings(tmp_path / "store")
    command = [sys.executable, str(SERVING / "serve.py")]
    command += arguments(small_run, settings, "torchserve")
    with open(tmp_path / "output.txt", "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env={**os.environ, **environment})  # fmt: skip
    try:
        found = re.search(r"curl -T IMAGE .* (http://\S+)$", process.stdout.readline().strip())
        request = urllib.request.Request(found.group(1), images[0], {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read())
        children = psutil.Process(process.pid).children(recursive=True)
        assert {address.ip for child in children for address in listening(child.pid)} == {
            "127.0.0.1"
        }
    finally:
        process.send_signal(end)
        assert process.wait(60) == (0 if end == signal.SIGTERM else -signal.SIGKILL)
        process.stdout.close()
    assert re.search(output, (tmp_path / "output.txt").read_text(), flags=re.DOTALL)
    assert psutil.wait_procs(children, timeout=20)[1] == []
    live = ModelStore(tmp_path / "store", settings.name).live()
    assert answer["model"] == {
        "name": "synthetic",
        "version": live.version,
        "runtime": "torchscript",
    }


def arguments(run_dir, settings, kind):
    keys = ("model_store", *PORTS)
    return [f"run_dir={run_dir}", f"deploy.server={kind}",
            *(f"deploy.{key}={getattr(settings, key)}" for key in keys)]  # fmt: skip


def test_a_version_whose_server_fails_the_parity_check_does_not_become_live(
    small_run, make_settings, tmp_path, broken_archive, capsys
):
    """The archive passes its own checks, but the responses of the server are wrong."""
    settings = make_settings(tmp_path / "store")
    before = deploy(small_run, settings, force=False)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with broken_archive("vars(neighbour) for", "vars(neighbour) | {'similarity': 0.5} for"):
            assert serve(arguments(small_run, settings, "fastapi")) == 1
    finally:
        signal.signal(signal.SIGTERM, terminated)
    printed = capsys.readouterr().err
    assert "the server fails the parity check: golden image 0" in printed
    assert f"still live: {before.version}" in printed
    store = ModelStore(tmp_path / "store", settings.name)
    assert store.live() == before
    assert {v.state for v in store.versions() if v.version != before.version} == {"kept"}
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPConnection("127.0.0.1", settings.inference_port).connect()

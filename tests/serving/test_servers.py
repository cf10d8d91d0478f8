"""Both servers, for real, on loopback: same requests, same answers, same manners."""

import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from arcloop.errors import ArtifactError, ConfigError
from arcloop.images import encode_png
from arcloop.searcher import read_index
from client import require_parity
from deploy import deploy
from parity import Golden
from responder import Question, Responder
from serve import SERVERS

SERVING = Path(__file__).parents[2] / "serving"
BOTH = [pytest.param("torchserve", marks=pytest.mark.java), "fastapi"]
PATH = "/predictions/synthetic"
FORM = {"Content-Type": "multipart/form-data; boundary=frontier"}


@pytest.fixture(scope="module", params=BOTH)
def served(request, small_run, make_settings, tmp_path_factory):
    """A running server, and the live version."""
    folder = tmp_path_factory.mktemp("served")
    settings = make_settings(folder / "store", max_pixels=4096, max_request_bytes=50_000)
    live = deploy(small_run, settings, force=False)
    with SERVERS[request.param](settings, live.path.parent, folder) as server:
        server.wait_until_ready()
        yield server, live


@pytest.fixture(scope="module")
def images(small_run):
    return [encode_png(image) for image in np.load(small_run / "golden.npz")["images"]]


def golden(run, file=None):
    index = read_index(run / "index/faiss_index.bin")
    return Golden(file or run / "golden.npz", index, tolerance=1e-4)


def send(served, method, path, body=None, headers=None):
    endpoint = served[0].endpoint
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=30)
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


def test_the_golden_batch_comes_back_as_the_run_would_have_it(served, small_run):
    server, live = served
    require_parity(server.endpoint, golden(small_run), live.version)


def test_the_parity_gate_sees_a_difference(served, small_run, tmp_path):
    server, live = served
    with pytest.raises(ArtifactError, match="it answers with version"):
        require_parity(server.endpoint, golden(small_run), "another")
    with np.load(small_run / "golden.npz") as stored:
        np.savez(tmp_path / "golden.npz", images=stored["images"],
                 embeddings=np.roll(stored["embeddings"], 1, axis=0))  # fmt: skip
    with pytest.raises(ArtifactError, match="the parity gate refuses the server: golden image"):
        require_parity(server.endpoint, golden(small_run, tmp_path / "golden.npz"), live.version)


def test_a_server_adds_nothing_to_what_the_archive_answers(served, images, tmp_path):
    """Byte for byte, so both servers give the same."""
    with zipfile.ZipFile(served[1].path) as packed:
        packed.extractall(tmp_path)
    settings = yaml.safe_load((tmp_path / "model-config.yaml").read_bytes())["handler"]
    responder = Responder(tmp_path, settings)
    for body, k in ((images[0], "3"), (b"junk", None), (images[1], "0"), (images[2][:60], "5")):
        (expected,) = responder.reply([Question(body, k)])
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
def test_a_wrong_k_is_told(served, images, k):
    status, text = send(served, "POST", PATH, images[0], {"x-arcloop-k": k})
    assert status == 400
    assert "must be a number from 1 to 100" in json.loads(text)["error"]


def test_a_body_over_the_limit(served):
    try:
        status, _ = send(served, "POST", PATH, b"x" * 60_000)
    except (BrokenPipeError, ConnectionResetError):
        return  # it was refused before it was read to the end
    assert status == 413


def test_another_model_is_not_found(served, images):
    assert send(served, "POST", "/predictions/other", images[0])[0] == 404


def test_bad_requests_in_a_batch_harm_no_other(served, images):
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


def test_mutated_images_never_break_it(served, images):
    """Truncated, flipped and spliced, from a fixed seed; nothing but 200 and 400."""
    chance = random.Random(0)

    def mutated():
        body = bytearray(chance.choice(images))
        for _ in range(chance.randrange(1, 8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        if chance.random() < 0.3:
            del body[chance.randrange(len(body)) :]
        if chance.random() < 0.2:
            body += chance.choice(images)
        return bytes(body)

    before = family(served)
    with ThreadPoolExecutor(8) as pool:
        bodies = [mutated() for _ in range(200)]
        statuses = {s for s, _ in pool.map(lambda b: send(served, "POST", PATH, b), bodies)}
    assert statuses <= {200, 400}
    assert family(served) == before


def family(served):
    process = psutil.Process(served[0].pid)
    return {process.pid, *(child.pid for child in process.children(recursive=True))}


def test_it_listens_on_loopback_only(served):
    listening = {
        connection.laddr
        for pid in family(served)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert served[0].endpoint.port in {address.port for address in listening}
    assert {address.ip.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}


def test_a_taken_port_is_told_before_anything_starts(served, tmp_path):
    server, live = served
    second = type(server)(server.settings, live.path.parent, tmp_path)
    with pytest.raises(ConfigError, match=r"deploy\.inference_port"), second:
        pass


@pytest.mark.parametrize("kind", BOTH)
def test_an_archive_that_was_changed_is_refused(kind, small_run, make_settings, tmp_path):
    """Somebody changed a label inside the archive, after it went live."""
    settings = make_settings(tmp_path / "store")
    live = deploy(small_run, settings, force=False)
    with zipfile.ZipFile(live.path) as packed:
        parts = {name: packed.read(name) for name in packed.namelist()}
    parts["faiss_label.json"] = parts["faiss_label.json"].replace(b"class-0", b"class-9")
    with zipfile.ZipFile(live.path, "w") as packed:
        for name, content in parts.items():
            packed.writestr(name, content)
    server = SERVERS[kind](settings, live.path.parent, tmp_path)
    with pytest.raises(ArtifactError, match=r"faiss_label\.json has other contents"), server:
        server.wait_until_ready()


@pytest.mark.parametrize(
    ("kind", "environment", "said"),
    [
        pytest.param("torchserve", {}, "", marks=pytest.mark.java),
        ("fastapi", {}, ""),
        ("torchserve", {"JAVA_HOME": "/nowhere"}, "there is no Java here; serving with"),
    ],
)
def test_serve_prints_a_request_that_works_and_stops_cleanly(
    kind, environment, said, small_run, make_settings, images, tmp_path
):
    settings = make_settings(tmp_path / "store")
    given = [f"deploy.{key}={getattr(settings, key)}" for key in (
        "model_store", "inference_port", "management_port", "metrics_port",
        "grpc_inference_port", "grpc_management_port")]  # fmt: skip
    command = [sys.executable, str(SERVING / "serve.py"), f"run_dir={small_run}",
               f"deploy.server={kind}", *given]  # fmt: skip
    with open(tmp_path / "said.txt", "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env={**os.environ, **environment})  # fmt: skip
    try:
        found = re.search(r"curl -T IMAGE .* (http://\S+)$", process.stdout.readline().strip())
        request = urllib.request.Request(found.group(1), images[0], {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.loads(response.read())["model"]["name"] == "synthetic"
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
    assert said in (tmp_path / "said.txt").read_text()
    assert psutil.wait_procs(children, timeout=10)[1] == []

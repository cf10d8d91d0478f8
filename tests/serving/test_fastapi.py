"""The FastAPI server: batching, time-outs, readiness, metrics, shutdown and the demo page."""

import asyncio
import contextlib
import io
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.datastructures import Headers

from arcloop.data import Store
from arcloop.runtime.images import decode, encode_png
from arcloop.runtime.predictor import PredictRequest, PredictResponse, RequestError
from arcloop.serving.deploy import deploy
from arcloop.serving.serve import write_thumbnails
from arcloop.serving.servers import batching
from arcloop.serving.servers.batching import Batcher
from arcloop.serving.servers.entrypoint import THUMBNAILS
from arcloop.serving.servers.fastapi_app import InferenceService, make_page, parse_request
from arcloop.serving.servers.process import FastApiServer


def echo(requests):
    return [PredictResponse(200, request.image) for request in requests]


def make_requests(count):
    return [PredictRequest(str(number).encode()) for number in range(count)]


class BlockedModel:
    """Echoes batches. The first one waits for `proceed`, so that further requests are queued."""

    def __init__(self, fault=None):
        self.batches, self.fault = [], fault
        self.started, self.proceed = threading.Event(), threading.Event()

    def __call__(self, batch):
        self.batches.append([request.image for request in batch])
        if len(self.batches) == 1:
            self.started.set()
            assert self.proceed.wait(30)
            if self.fault:
                raise self.fault
        return echo(batch)


async def predict_while_blocked(
    model, count, meanwhile=lambda tasks: None, *, closed=False, **sizes
):
    batcher = Batcher(model, **sizes)
    first, *others = make_requests(count)
    tasks = [asyncio.create_task(batcher.predict(first))]
    while not model.started.is_set():
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batcher.predict(request)) for request in others]
    await asyncio.sleep(0)
    meanwhile(tasks)
    await asyncio.sleep(0)
    model.proceed.set()
    if closed:
        batcher.close()
    async with asyncio.timeout(30):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    if not closed:
        batcher.close()
    return found


def test_each_request_gets_its_own_answer_and_batches_fill_under_load():
    model = BlockedModel()
    found = asyncio.run(predict_while_blocked(model, 51, batch_size=8, queue_size=100))
    assert [reply.body for reply in found] == [q.image for q in make_requests(51)]
    assert [len(batch) for batch in model.batches] == [1, 8, 8, 8, 8, 8, 8, 2]


def test_requests_beyond_the_queue_size_are_rejected():
    found = asyncio.run(predict_while_blocked(BlockedModel(), 10, batch_size=2, queue_size=5))
    assert [reply.body for reply in found[:6]] == [q.image for q in make_requests(6)]
    assert all(isinstance(reply, asyncio.QueueFull) for reply in found[6:])


def test_a_failed_batch_does_not_affect_the_next_one():
    model = BlockedModel(fault=MemoryError("no memory"))
    found = asyncio.run(predict_while_blocked(model, 3, batch_size=2, queue_size=10))
    assert [type(reply) for reply in found] == [MemoryError, PredictResponse, PredictResponse]


def test_a_cancelled_request_is_not_computed():
    model = BlockedModel()
    sizes = {"batch_size": 1, "queue_size": 10}
    asyncio.run(predict_while_blocked(model, 3, lambda tasks: tasks[1].cancel(), **sizes))
    assert model.batches == [[b"0"], [b"2"]]


def test_queued_requests_are_answered_before_the_thread_ends():
    model, before = BlockedModel(), threading.active_count()
    found = asyncio.run(predict_while_blocked(model, 8, batch_size=2, queue_size=10, closed=True))
    assert [reply.body for reply in found] == [q.image for q in make_requests(8)]
    assert threading.active_count() == before


def test_a_probe_is_answered_before_a_full_queue():
    model, probe = BlockedModel(), PredictRequest(b"probe")

    async def check():
        batcher = Batcher(model, batch_size=2, queue_size=4)
        tasks = [asyncio.create_task(batcher.predict(request)) for request in make_requests(1)]
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher.predict(request)) for request in make_requests(5)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(batcher.predict(probe, first=True)))
        await asyncio.sleep(0)
        model.proceed.set()
        async with asyncio.timeout(30):
            found = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        return found

    found = asyncio.run(check())
    assert found[-1].body == b"probe"
    assert [type(one) for one in found].count(asyncio.QueueFull) == 1
    assert model.batches[1] == [b"probe", b"0"]


def test_a_model_that_finishes_no_batch_is_stalled(monkeypatch):
    now, model = [100.0], BlockedModel()
    clock = SimpleNamespace(
        monotonic=lambda: now[0], perf_counter=time.perf_counter, sleep=time.sleep
    )
    monkeypatch.setattr(batching, "time", clock)

    async def check():
        batcher = Batcher(model, batch_size=2, queue_size=4)
        now[0] = 200.0
        assert batcher.stalled_s() == 0  # there is no work
        task = asyncio.create_task(batcher.predict(make_requests(1)[0]))
        while not model.started.is_set():
            await asyncio.sleep(0.001)
        now[0] = 230.0
        assert batcher.stalled_s() == 30
        model.proceed.set()
        await task
        batcher.close()
        assert batcher.stalled_s() == 0

    asyncio.run(check())


CONFIG = {"name": "m", "batch_size": 8, "queue_size": 2, "response_timeout_s": 0.2,
          "max_request_bytes": 100, "max_inflight_bytes": 1000, "idle_timeout_s": 1}  # fmt: skip


class StuckModel:
    """Answers after `free` is set. Like that of an older archive, it has no method `decode`."""

    def __init__(self):
        self.free = threading.Event()
        self.golden = SimpleNamespace(encoded_images=lambda: [b"{}"])

    def predict(self, batch):
        self.free.wait(10)
        return echo(batch)


def test_the_server_is_ready_only_while_the_model_answers():
    stuck = StuckModel()
    service = InferenceService(stuck, CONFIG)
    app = FastAPI()
    app.add_api_route("/ready", service.ready)
    app.add_api_route("/ping", service.ping)
    app.add_api_route("/predictions/{name}", service.predict, methods=["POST"])

    async def check():
        transport = httpx.ASGITransport(app)
        async with (
            service.lifespan(app),
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/ping")).status_code == 200
            late = await client.post("/predictions/m", content=b"x")
            assert late.status_code == 503
            assert late.json() == {"error": "no answer in time"}
            await asyncio.sleep(2 * CONFIG["response_timeout_s"])
            assert (await client.get("/ping")).status_code == 503
            stuck.free.set()
            assert (await client.get("/ready")).status_code == 200
            assert (await client.get("/ping")).status_code == 200

    asyncio.run(check())


@pytest.fixture(scope="module")
def image(small_run):
    return encode_png(np.load(small_run / "golden.npz")["images"][0])


def get(server, path):
    with urllib.request.urlopen(urljoin(server.endpoint.url, path), timeout=30) as response:
        return response.read()


def send_head(server, *lines):
    """Open a connection and send the head of a request; the caller sends the body."""
    url = urlsplit(server.endpoint.url)
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    head = (f"POST {url.path} HTTP/1.1", "Host: localhost", *lines, "", "")
    connection.sendall("\r\n".join(head).encode())
    return connection


def read_until_closed(connection):
    received = b""
    while data := connection.recv(1 << 16):
        received += data
    return received


@pytest.fixture(scope="module")
def impatient(small_run, make_settings, tmp_path_factory):
    """A server with thumbnails, short time-outs and small limits of bodies and connections."""
    folder = tmp_path_factory.mktemp("impatient")
    settings = make_settings(
        folder / "store", response_timeout_s=1, max_request_bytes=10_000,
        max_inflight_bytes=30_000, max_connections=20, idle_timeout_s=2,
    )  # fmt: skip
    live = deploy(small_run, settings, force=False)
    write_thumbnails(small_run, 90, folder / THUMBNAILS)
    with FastApiServer(settings, live.path, folder) as server:
        server.wait_until_ready()
        yield server


def test_half_a_body_gets_408_and_the_connection_is_closed(impatient, image):
    with send_head(impatient, f"Content-Length: {len(image)}") as connection:
        connection.sendall(image[: len(image) // 2])
        response = read_until_closed(connection)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"the request body was not complete after 1 s" in response
    assert impatient.endpoint.predict(image, 5)[0] == 200


def test_an_endless_body_gets_408(impatient):
    """The body exceeds the size limit and never ends; each byte arrives before the time-out."""
    start = time.monotonic()
    with send_head(impatient, "Transfer-Encoding: chunked") as connection:
        connection.settimeout(0.05)
        response = b""
        while not response.startswith(b"HTTP/1.1 408 "):
            assert time.monotonic() - start < 20
            connection.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
            try:
                response += connection.recv(1 << 16)
            except TimeoutError:
                continue
    assert time.monotonic() - start >= 1


def test_unfinished_bodies_of_all_clients_have_a_limit(impatient, image):
    with contextlib.ExitStack() as stack:
        sent = [stack.enter_context(send_head(impatient, "Content-Length: 9000")) for _ in range(4)]
        for connection in sent:
            with contextlib.suppress(OSError):  # the server has refused it already
                connection.sendall(bytes(8999))
        statuses = [read_until_closed(connection)[:13] for connection in sent]
    assert sorted(statuses) == [b"HTTP/1.1 408 ", b"HTTP/1.1 408 ", b"HTTP/1.1 408 ",
                                b"HTTP/1.1 503 "]  # fmt: skip
    for _ in range(8):  # the memory of the others and of answered requests is free again
        assert impatient.endpoint.predict(image, 5)[0] == 200


@pytest.mark.parametrize("end", ["\r\n\r\n", ""], ids=["complete", "endless"])
def test_a_large_head_gets_431(impatient, image, end):
    url = urlsplit(impatient.endpoint.url)
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        head = f"GET /ready HTTP/1.1\r\nHost: a\r\nX-Large: {'x' * 40_000}{end}"
        connection.sendall(head.encode())
        assert read_until_closed(connection).startswith(b"HTTP/1.1 431 ")
    assert impatient.endpoint.predict(image, 5)[0] == 200


def test_a_head_that_does_not_end_gets_408(impatient):
    url = urlsplit(impatient.endpoint.url)
    for start in (b"", b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\nPOST /"):  # the second request
        with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
            connection.sendall(start)
            assert b"HTTP/1.1 408 " in read_until_closed(connection)


def test_connections_that_wait_make_room_for_new_ones(impatient, image):
    url = urlsplit(impatient.endpoint.url)
    with contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=30))
            for _ in range(30)
        ]
        assert impatient.endpoint.predict(image, 5)[0] == 200
        assert get(impatient, "/ready")
        assert waiting[0].recv(1) == b""  # closed, and not answered with 408
        waiting[-1].sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"Healthy" in read_until_closed(waiting[-1])


def png_of_palette(side):
    buffer = io.BytesIO()
    Image.new("P", (side, side)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def test_large_images_are_answered_or_refused(impatient):
    large = png_of_palette(2600)
    assert len(large) < 10_000
    with ThreadPoolExecutor(20) as pool:
        sent = [pool.submit(impatient.endpoint.predict, large, 5) for _ in range(20)]
        statuses = [one.result()[0] for one in sent]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 1
    status, body = impatient.endpoint.predict(png_of_palette(6000), 5)
    assert (status, "at most 33,554,432 are decoded" in str(body)) == (400, True)


def test_the_model_answers_while_a_large_image_is_decoded():
    free, order = threading.Event(), []

    def decode(request):
        assert free.wait(10)
        return PredictResponse(400, b"{}")

    def predict(batch):
        order.extend(request.image for request in batch)
        return echo(batch)

    golden = SimpleNamespace(encoded_images=lambda: [b"{}"])
    service = InferenceService(
        SimpleNamespace(predict=predict, decode=decode, golden=golden),
        CONFIG | {"max_request_bytes": 10_000, "max_inflight_bytes": 100_000,
                  "response_timeout_s": 10},
    )  # fmt: skip
    app = FastAPI()
    app.add_api_route("/predictions/{name}", service.predict, methods=["POST"])

    async def check():
        transport = httpx.ASGITransport(app)
        async with (
            service.lifespan(app),
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            large = png_of_palette(1100)
            waiting = [
                asyncio.create_task(client.post("/predictions/m", content=large)) for _ in range(9)
            ]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [one.result().status_code for one in done] == [503]  # 8 are waiting
            assert done.pop().result().headers["retry-after"] == "1"
            assert (await client.post("/predictions/m", content=b"small")).status_code == 200
            free.set()
            assert sorted([(await one).status_code for one in waiting]) == [400] * 8 + [503]

    asyncio.run(check())
    assert order == [b"small"]


def counted(server):
    found = re.search(
        r'request_seconds_count\{status="200"\} (\S+)', get(server, "/metrics").decode()
    )
    return float(found.group(1)) if found else 0.0


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_before_sigterm_are_answered(
    small_run, make_settings, tmp_path, image, workers, monkeypatch
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    settings = make_settings(tmp_path / "store", workers=workers)
    live = deploy(small_run, settings, force=False)
    with FastApiServer(settings, live.path, tmp_path) as server:
        server.wait_until_ready()
        for _ in range(10):
            assert server.endpoint.predict(image, 5)[0] == 200
        assert counted(server) == 10  # of all workers together
        with ThreadPoolExecutor(16) as pool:
            sent = [pool.submit(server.endpoint.predict, image, 5) for _ in range(64)]
            while sum(one.done() for one in sent) < 8:
                time.sleep(0.001)
            server.process.terminate()
            refused = [one.exception() for one in sent if one.exception()]
        answered = [one.result()[0] for one in sent if not one.exception()]
    assert set(answered) == {200}
    assert len(answered) >= 8
    assert list((tmp_path / "tmp").iterdir()) == []  # the unpacked archive is removed
    # A request that was not accepted in time gets a connection error. The pipe is broken if the
    # server closes the connection between the request head and the body.
    expected = (ConnectionRefusedError, ConnectionResetError, BrokenPipeError)
    assert all(isinstance(one, expected) for one in refused)


def test_page_and_schema(impatient, tmp_path):
    page = get(impatient, "/").decode()
    assert "predictions/synthetic" in page
    assert "{{" not in page
    assert "http" not in page  # the page loads nothing from other servers
    assert 'data-thumbnails="0"' in make_page("synthetic", 100, tmp_path / "absent")
    schema = json.loads(get(impatient, "/openapi.json"))
    assert "/predictions/{name}" in schema["paths"]


def test_thumbnails_of_gallery_rows(impatient, small_run):
    """Each thumbnail shows the row of the store that the index was built from."""
    page = get(impatient, "/").decode()
    assert 'data-thumbnails="90"' in page
    assert "gallery/${row}.png" in page
    rows = Store.open(next((small_run.parents[1] / "stores").iterdir())).batches("gallery", 90)
    images_NHWC, _ = next(iter(rows))
    assert len(images_NHWC) == 90
    for row, image_HWC in enumerate(images_NHWC):
        found = decode(get(impatient, f"/gallery/{row}.png"), height=16, width=16, channels=1)
        np.testing.assert_array_equal(found, image_HWC)
    for missing in ("90.png", "-1.png", "0.jpg", "../config.properties"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(impatient, f"/gallery/{missing}")


def test_no_thumbnails_of_a_large_gallery_or_without_the_store(
    small_run, run_dir, tmp_path, capsys
):
    write_thumbnails(small_run, 89, tmp_path / "thumbnails")
    assert "90 gallery rows, deploy.thumbnails=89" in capsys.readouterr().err
    write_thumbnails(run_dir, 90, tmp_path / "thumbnails")  # a copy without its store
    assert "was not found" in capsys.readouterr().err
    assert not (tmp_path / "thumbnails").exists()


def parse_form(body, boundary="b"):
    headers = Headers({"content-type": f"multipart/form-data; boundary={boundary}"})
    return asyncio.run(parse_request(headers, body))


def part(name, value, *more):
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{"".join(more)}\r\n\r\n'
    return head.encode() + value + b"\r\n"


@pytest.mark.parametrize("file_name", ["", '; filename="x.png"'])
def test_no_byte_of_a_form_field_is_lost(file_name):
    every_byte = bytes(range(256)) * 2
    request = parse_form(part("image", every_byte, file_name) + part("k", b"7") + b"--b--\r\n")
    assert request == PredictRequest(every_byte, "7")


@pytest.mark.parametrize(
    "body", [b"", b"junk", b"--b", b"--b\r\n\r\nx", part("image", b"x") * 20 + b"--b--\r\n"]
)
def test_an_invalid_form_is_rejected(body):
    with pytest.raises(RequestError):
        parse_form(body)


def test_a_form_without_a_boundary_is_rejected():
    with pytest.raises(RequestError, match="cannot be read"):
        parse_form(b"x", boundary="")

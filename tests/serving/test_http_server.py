"""What the second server has of its own: batching, readiness, metrics, drain, the page."""

import asyncio
import json
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request

from arcloop.data import Store
from arcloop.runtime.images import decode, encode_png
from arcloop.runtime.responder import Question, RefusalError, Reply
from arcloop.serving.deploy import deploy
from arcloop.serving.servers import thumbnails
from arcloop.serving.servers.batching import Batcher, OverloadedError
from arcloop.serving.servers.http_app import Service
from arcloop.serving.servers.http_process import HttpServer
from arcloop.serving.servers.page import Page
from arcloop.serving.servers.requests_read import read_question


def echo(questions):
    return [Reply(200, "OK", question.image) for question in questions]


def questions(count):
    return [Question(str(number).encode()) for number in range(count)]


class Held:
    """Echoes batches; the first is kept back until it is told, and so others wait behind it."""

    def __init__(self, fault=None):
        self.batches, self.fault = [], fault
        self.begun, self.told = threading.Event(), threading.Event()

    def __call__(self, batch):
        self.batches.append([question.image for question in batch])
        if len(self.batches) == 1:
            self.begun.set()
            assert self.told.wait(30)
            if self.fault:
                raise self.fault
        return echo(batch)


async def ask_behind_a_held_one(
    held, count, meanwhile=lambda tasks: None, *, closed=False, **sizes
):
    batcher = Batcher(held, **sizes)
    first, *others = questions(count)
    tasks = [asyncio.create_task(batcher.answer(first))]
    while not held.begun.is_set():
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batcher.answer(question)) for question in others]
    await asyncio.sleep(0)
    meanwhile(tasks)
    await asyncio.sleep(0)
    held.told.set()
    if closed:
        batcher.close()
    async with asyncio.timeout(30):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    if not closed:
        batcher.close()
    return found


def test_each_gets_its_own_answer_and_batches_fill_under_load():
    held = Held()
    found = asyncio.run(ask_behind_a_held_one(held, 51, batch_size=8, queue_size=100))
    assert [reply.body for reply in found] == [q.image for q in questions(51)]
    assert [len(batch) for batch in held.batches] == [1, 8, 8, 8, 8, 8, 8, 2]


def test_more_than_may_wait_are_refused_and_the_rest_answered():
    found = asyncio.run(ask_behind_a_held_one(Held(), 10, batch_size=2, queue_size=5))
    assert [reply.body for reply in found[:6]] == [q.image for q in questions(6)]
    assert all(isinstance(reply, OverloadedError) for reply in found[6:])


def test_a_failed_batch_is_told_and_the_next_one_answered():
    held = Held(fault=MemoryError("no memory"))
    found = asyncio.run(ask_behind_a_held_one(held, 3, batch_size=2, queue_size=10))
    assert [type(reply) for reply in found] == [MemoryError, Reply, Reply]


def test_who_gave_up_is_left_out():
    held = Held()
    sizes = {"batch_size": 1, "queue_size": 10}
    asyncio.run(ask_behind_a_held_one(held, 3, lambda tasks: tasks[1].cancel(), **sizes))
    assert held.batches == [[b"0"], [b"2"]]


def test_what_waits_is_answered_before_the_thread_ends():
    held, before = Held(), threading.active_count()
    found = asyncio.run(ask_behind_a_held_one(held, 8, batch_size=2, queue_size=10, closed=True))
    assert [reply.body for reply in found] == [q.image for q in questions(8)]
    assert threading.active_count() == before


CONFIG = {"name": "m", "batch_size": 8, "queue_size": 2, "response_timeout_s": 0.2,
          "max_request_bytes": 100}  # fmt: skip


class Stuck:
    """A model that answers when it is let."""

    def __init__(self):
        self.free = threading.Event()

    def reply(self, batch):
        self.free.wait(10)
        return echo(batch)


def test_it_is_ready_only_while_the_model_answers():
    stuck = Stuck()
    service = Service(stuck, CONFIG, Question(b"{}"))
    app = FastAPI()
    app.add_api_route("/ready", service.ready)
    app.add_api_route("/ping", service.ping)
    app.add_api_route("/predictions/{name}", service.predictions, methods=["POST"])

    async def ask():
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
            stuck.free.set()
            assert (await client.get("/ready")).status_code == 200

    asyncio.run(ask())


@pytest.fixture(scope="module")
def image(small_run):
    return encode_png(np.load(small_run / "golden.npz")["images"][0])


def get(server, path):
    url = f"http://{server.endpoint.host}:{server.endpoint.port}{path}"
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


def counted(server):
    found = re.search(r'request_seconds_count\{status="200"\} (\S+)', get(server, "/metrics"))
    return float(found.group(1)) if found else 0.0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_asked_before_sigterm_is_answered(
    small_run, make_settings, tmp_path, image, workers, monkeypatch
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    settings = make_settings(tmp_path / "store", workers=workers)
    live = deploy(small_run, settings, force=False)
    with HttpServer(settings, live.path, tmp_path) as server:
        server.wait_until_ready()
        for _ in range(10):
            assert server.endpoint.ask(image, 5)[0] == 200
        assert counted(server) == 10  # of all workers together
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(server.endpoint.ask, image, 5) for _ in range(64)]
            while sum(one.done() for one in asked) < 8:
                time.sleep(0.001)
            server.terminate()
            refused = [one.exception() for one in asked if one.exception()]
        answered = [one.result()[0] for one in asked if not one.exception()]
    assert set(answered) == {200}
    assert len(answered) >= 8
    assert list((tmp_path / "tmp").iterdir()) == []  # what it unpacked is gone
    # One whose request was on its way hears that the connection ended.
    assert all(isinstance(one, ConnectionRefusedError | ConnectionResetError) for one in refused)


def test_page_and_schema(servers):
    server, _ = servers("fastapi")
    page = get(server, "/")
    assert "predictions/synthetic" in page
    assert "{{" not in page
    assert "http" not in page  # nothing is fetched from elsewhere
    assert 'data-pictures="0"' in page
    schema = json.loads(get(server, "/openapi.json"))
    assert "/predictions/{name}" in schema["paths"]


def test_pictures_of_gallery_rows(small_run, tmp_path):
    """Each is that row of the store, which the index was built from."""
    thumbnails.write(small_run, 90, tmp_path / "thumbnails.npz")
    page = Page("m", 5, tmp_path / "thumbnails.npz")
    rows = Store.open(next((small_run.parents[1] / "stores").iterdir())).batches("gallery", 90)
    images_NHWC, _ = next(iter(rows))
    assert len(images_NHWC) == 90
    for row, image_HWC in enumerate(images_NHWC):
        answer = asyncio.run(page.picture(row))
        assert answer.media_type == "image/png"
        found = decode(answer.body, height=16, width=16, channels=1)
        np.testing.assert_array_equal(found, image_HWC)
    for row in (-1, 90):
        assert asyncio.run(page.picture(row)).status_code == 404
    assert b'data-pictures="90"' in asyncio.run(page.html()).body


def test_no_pictures_of_a_large_gallery_or_an_absent_store(small_run, run_dir, tmp_path, capsys):
    thumbnails.write(small_run, 89, tmp_path / "thumbnails.npz")
    assert "90 gallery rows, deploy.thumbnails=89" in capsys.readouterr().err
    thumbnails.write(run_dir, 90, tmp_path / "thumbnails.npz")  # a copy, far from its store
    assert "is not at hand" in capsys.readouterr().err
    assert not (tmp_path / "thumbnails.npz").exists()


def ask_form(body, boundary="b"):
    """What read_question makes of a form."""

    async def read():
        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        kind = f"multipart/form-data; boundary={boundary}".encode()
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}
        return await read_question(Request(scope, receive), 100_000)

    return asyncio.run(read())


def part(name, value, *more):
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{"".join(more)}\r\n\r\n'
    return head.encode() + value + b"\r\n"


@pytest.mark.parametrize("file_name", ["", '; filename="x.png"'])
def test_no_byte_of_a_form_field_is_lost(file_name):
    every = bytes(range(256)) * 2
    question = ask_form(part("image", every, file_name) + part("k", b"7") + b"--b--\r\n")
    assert question == Question(every, "7")


@pytest.mark.parametrize(
    "body", [b"", b"junk", b"--b", b"--b\r\n\r\nx", part("image", b"x") * 20 + b"--b--\r\n"]
)
def test_a_form_that_cannot_be_read_is_refused(body):
    with pytest.raises(RefusalError):
        ask_form(body)


def test_a_form_without_a_boundary_is_refused():
    with pytest.raises(RefusalError, match="cannot be read"):
        ask_form(b"x", boundary="")

"""The second server's application: its routes around a responder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import prometheus_client as prometheus
import torch
import yaml
from fastapi import FastAPI, Request, Response
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from arcloop.runtime.golden_batch import GOLDEN, golden_image
from arcloop.runtime.responder import Question, RefusalError, Responder
from arcloop.serving.servers.batching import Batcher, OverloadedError
from arcloop.serving.servers.http_server import CONFIG, THUMBNAILS, UNPACKED
from arcloop.serving.servers.page import Page
from arcloop.serving.servers.requests_read import read_question

_PREDICTIONS = "/predictions/"
# The model's thread asks for the interpreter a dozen times an image, and the loop's gives it up
# after this long: with Python's own 5 ms, 32 clients get a tenth fewer answers.
_SWITCH_SECONDS = 0.0005
_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/png", "image/jpeg", "image/webp", "image/bmp")
        },
    }
}


def create_app() -> ASGIApp:
    """Load the unpacked archive, and return the application around it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    folder = Path(os.environ[UNPACKED])
    archive = folder / "archive"
    config = json.loads((folder / CONFIG).read_bytes())
    handler = yaml.safe_load((archive / "model-config.yaml").read_bytes())["handler"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    service = Service(
        Responder(archive, handler, device), config, Question(golden_image(archive / GOLDEN))
    )
    page = Page(config["name"], handler["max_k"], folder / THUMBNAILS)
    app = FastAPI(title=f"arcloop: {config['name']}", lifespan=service.lifespan)
    app.add_api_route(
        _PREDICTIONS + "{name}", service.predictions, methods=["POST", "PUT"], openapi_extra=_BODY
    )
    routes: dict[str, Callable[..., Any]] = {
        "/ping": service.ping,
        "/ready": service.ready,
        "/": page.html,
        "/gallery/{row}": page.picture,
    }
    if not config["metrics_host"]:
        routes["/metrics"] = service.metrics
    for path, endpoint in routes.items():
        app.add_api_route(path, endpoint, methods=["GET"])

    async def short_cut(scope: Scope, receive: Receive, send: Send) -> None:
        """Questions past FastAPI: through it, a lone client gets an eighth fewer answers."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(_PREDICTIONS) and scope["method"] in ("POST", "PUT"):
            name = path.removeprefix(_PREDICTIONS)
            response = await service.predictions(name, Request(scope, receive))
            await response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return short_cut


class Service:
    """What the routes do.

    Args:
        responder: Answers.
        config: http-server.json.
        probe: A question that must be answered where the server calls itself ready.
    """

    def __init__(self, responder: Responder, config: Mapping[str, Any], probe: Question) -> None:
        self._responder, self._config, self._probe = responder, config, probe
        self._batcher = Batcher(
            responder.reply, batch_size=config["batch_size"], queue_size=config["queue_size"]
        )
        self._registry = prometheus.CollectorRegistry()
        self._seconds = prometheus.Histogram(
            "arcloop_request_seconds",
            "From a request's head to its answer, by status.",
            ["status"],
            buckets=_BUCKETS,
            registry=self._registry,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """End the model's thread with the server."""
        yield
        self._batcher.close()

    async def predictions(self, name: str, request: Request) -> Response:
        """What is in this image?"""
        start = time.perf_counter()
        if name == self._config["name"]:
            response = await self._answer(request)
        else:
            response = _failed(404, f"there is no model {name!r}")
        self._seconds.labels(response.status_code).observe(time.perf_counter() - start)
        return response

    async def ping(self) -> dict[str, str]:
        """Whether the process is there."""
        return {"status": "Healthy"}

    async def ready(self) -> Response:
        """Whether the model answers."""
        try:
            async with asyncio.timeout(self._config["response_timeout_s"]):
                reply = await self._batcher.answer(self._probe)
        except Exception as cause:  # noqa: BLE001 - whatever keeps the model from answering
            return _failed(503, f"the model does not answer: {cause!r}")
        return Response(reply.body, reply.status, media_type="application/json")

    async def metrics(self) -> Response:
        """Counts and latencies for Prometheus, of all workers."""
        shown = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            shown = prometheus.CollectorRegistry()
            MultiProcessCollector(shown)  # type: ignore[no-untyped-call]
        text = prometheus.generate_latest(shown)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    async def _answer(self, request: Request) -> Response:
        try:
            question = await read_question(request, self._config["max_request_bytes"])
            async with asyncio.timeout(self._config["response_timeout_s"]):
                reply = await self._batcher.answer(question)
        except RefusalError as refusal:
            reply = self._responder.refuse(refusal)
        except (OverloadedError, TimeoutError) as cause:
            return _failed(503, str(cause) or "no answer in time")
        except ClientDisconnect:
            return _failed(400, "the client went away")  # for the count; nobody reads it
        return Response(reply.body, reply.status, media_type="application/json")


def _failed(status: int, why: str) -> Response:
    return Response(json.dumps({"error": why}), status, media_type="application/json")

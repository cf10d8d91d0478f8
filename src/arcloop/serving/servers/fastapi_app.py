"""The FastAPI application: prediction requests, readiness, metrics, and a demo page."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import prometheus_client as prometheus
import torch
import yaml
from fastapi import FastAPI, Request, Response
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arcloop.runtime import ARCHIVED_PACKAGE
from arcloop.runtime.predictor import (
    IMAGE_FIELDS,
    K_HEADER,
    ONE_IMAGE,
    DecodedRequest,
    Predictor,
    PredictRequest,
    PredictResponse,
    RequestError,
)
from arcloop.serving.servers.batching import Batcher
from arcloop.serving.servers.entrypoint import ARCHIVE_VARIABLE, CONFIG_VARIABLE, THUMBNAILS
from arcloop.serving.servers.large_images import LargeImages
from arcloop.serving.servers.limits import BodyBudget, BodyLimitError, LimitedProtocol

_PREDICTIONS = "/predictions/"
# The event loop releases the GIL after this time if another thread waits for it. The model's thread
# acquires the GIL many times per image, so Python's default of 5 ms would delay it.
_SWITCH_SECONDS = 0.0005
_LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_STUCK_TIMEOUTS = 2
"""A batch that takes this many times the limit of an answer will not end; all clients have left."""
_RETRY_AFTER = {"Retry-After": "1"}
_MAX_FORM_PARTS = 8
_PAGE_NEIGHBOURS = 12
_PAGE_HTML = Path(__file__).with_name("demo_page.html")
# The page loads nothing from other servers, and other pages cannot embed it in a frame.
_PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/png", "image/jpeg", "image/webp", "image/bmp")
        },
    }
}


def create_app() -> ASGIApp:
    """Load the unpacked archive and return the application that serves it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    config_file, archive = Path(os.environ[CONFIG_VARIABLE]), Path(os.environ[ARCHIVE_VARIABLE])
    config = json.loads(config_file.read_bytes())
    LimitedProtocol.max_connections = config["max_connections"]
    LimitedProtocol.head_s = config["idle_timeout_s"]
    handler = yaml.safe_load((archive / "model-config.yaml").read_bytes())["handler"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The copy of the predictor in the archive, which TorchServe uses too.
    archived = importlib.import_module(f"{ARCHIVED_PACKAGE}.predictor")
    predictor: Predictor = archived.Predictor(archive, handler, device)
    service = InferenceService(predictor, config)
    thumbnails = config_file.with_name(THUMBNAILS)
    html = make_page(config["name"], handler["max_k"], thumbnails)

    async def page() -> Response:
        """A page to try the model in a browser."""
        return HTMLResponse(html, headers={"Content-Security-Policy": _PAGE_POLICY})

    app = FastAPI(title=f"arcloop: {config['name']}", lifespan=service.lifespan)
    app.add_api_route(
        _PREDICTIONS + "{name}",
        service.predict,
        methods=["POST", "PUT"],
        openapi_extra=_REQUEST_BODY,
    )
    routes: dict[str, Callable[..., Any]] = {
        "/ping": service.ping,
        "/ready": service.ready,
        "/": page,
    }
    if config["metrics_host"] is None:
        routes["/metrics"] = service.metrics
    for path, endpoint in routes.items():
        app.add_api_route(path, endpoint, methods=["GET"])
    if thumbnails.exists():
        app.mount("/gallery", StaticFiles(directory=thumbnails))

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        """Handle predictions without FastAPI's routing, and all other requests with it."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(_PREDICTIONS) and scope["method"] in ("POST", "PUT"):
            name = path.removeprefix(_PREDICTIONS)
            response = await service.predict(name, Request(scope, receive))
            await response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return dispatch


class InferenceService:
    """The routes for predictions, readiness and metrics.

    Args:
        predictor: Answers batches of requests.
        config: The content of http-server.json.
    """

    def __init__(self, predictor: Predictor, config: Mapping[str, Any]) -> None:
        self._predictor, self._config = predictor, config
        self._probe = PredictRequest(predictor.golden.encoded_images()[0])
        self._batcher = Batcher(
            predictor.predict, batch_size=config["batch_size"], queue_size=config["queue_size"]
        )
        self._large_images = LargeImages(getattr(predictor, "decode", None))
        self._bodies = BodyBudget(
            total=config["max_inflight_bytes"],
            each=config["max_request_bytes"],
            idle_s=config["idle_timeout_s"],
            timeout_s=config["response_timeout_s"],
        )
        self._latency = prometheus.Histogram(
            "arcloop_request_seconds",
            "Time from a request's headers to its response, by status.",
            ["status"],
            buckets=_LATENCY_BUCKETS,
            registry=None,  # MultiProcessCollector reads the values of all workers
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Stop the threads when the server shuts down."""
        yield
        self._large_images.close()
        self._batcher.close()

    async def predict(self, name: str, request: Request) -> Response:
        """Classify an image, and return its nearest gallery rows."""
        start = time.perf_counter()
        response = await self._respond(name, request)
        self._latency.labels(response.status_code).observe(time.perf_counter() - start)
        return response

    async def ping(self) -> Response:
        """Whether the process runs and its model is not stuck."""
        stalled_s = self._batcher.stalled_s()
        if stalled_s > _STUCK_TIMEOUTS * self._config["response_timeout_s"]:
            return _error(503, f"the model has not finished a batch for {stalled_s:.0f} s")
        return Response('{"status": "Healthy"}', media_type="application/json")

    async def ready(self) -> Response:
        """Whether the model answers; also while the queue is full."""
        try:
            async with asyncio.timeout(self._config["response_timeout_s"]):
                answer = await self._batcher.predict(self._probe, first=True)
        except Exception as cause:  # noqa: BLE001 - any failure of the model means not ready
            return _error(503, f"the model does not answer: {cause!r}")
        return Response(answer.body, answer.status, media_type="application/json")

    async def metrics(self) -> Response:
        """Request counts and latencies of all workers, for Prometheus."""
        registry = prometheus.CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text = prometheus.generate_latest(registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    async def _respond(self, name: str, request: Request) -> Response:
        timeout_s = self._config["response_timeout_s"]
        # With the header `Connection: close`, uvicorn does not wait for the rest of a body.
        close = {"Connection": "close"}
        try:
            body = await self._bodies.read(request)
        except TimeoutError:
            reason = (
                f"the request body was not complete after {timeout_s} s, or no byte arrived for"
                f" {self._config['idle_timeout_s']} s"
            )
            return _error(HTTPStatus.REQUEST_TIMEOUT, reason, close)
        except BodyLimitError:
            reason = "the requests of all clients need too much memory"
            return _error(503, reason, close | _RETRY_AFTER)
        except ClientDisconnect:
            return _error(400, "the client closed the connection")  # only counted in the metrics
        try:
            return await self._answer(name, request, body)
        finally:
            self._bodies.release(len(body or b""))

    async def _predict(self, request: PredictRequest) -> PredictResponse:
        """Answer a request.

        Raises:
            asyncio.QueueFull: Too many requests, or too many large images, are waiting.
        """
        if not self._large_images.contains(request.image):
            return await self._batcher.predict(request)
        decoded = await self._large_images.decode(request)
        if type(decoded).__name__ == PredictResponse.__name__:  # a copy of the class, see above
            return cast("PredictResponse", decoded)
        return await self._batcher.predict(cast("DecodedRequest", decoded))

    async def _answer(self, name: str, request: Request, body: bytes | None) -> Response:
        if name != self._config["name"]:
            return _error(404, f"there is no model {name!r}")
        try:
            if body is None:
                limit = self._config["max_request_bytes"]
                reason = f"more than {limit:,} bytes"
                raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
            predict_request = await parse_request(request.headers, body)
            async with asyncio.timeout(self._config["response_timeout_s"]):
                answer = await self._predict(predict_request)
        except RequestError as error:
            answer = self._predictor.error_response(error.status, str(error))
        except (asyncio.QueueFull, TimeoutError) as cause:
            return _error(503, str(cause) or "no answer in time", _RETRY_AFTER)
        return Response(answer.body, answer.status, media_type="application/json")


async def parse_request(headers: Headers, body: bytes) -> PredictRequest:
    """Find the image, which is the body or a form field, and k, which is a header or a form field.

    Raises:
        RequestError: The form is invalid, or there is not exactly one image.
    """
    content_type = headers.get("content-type", "")
    if not content_type.startswith("multipart/form-data"):
        return PredictRequest(body, headers.get(K_HEADER))

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    # The parser decodes a field without a file name as text; latin-1 preserves every byte.
    content_type = f"{content_type}; charset=latin-1"
    scope = {"type": "http", "headers": [(b"content-type", content_type.encode("latin-1"))]}
    limits = {"max_files": _MAX_FORM_PARTS, "max_fields": _MAX_FORM_PARTS}
    try:
        async with Request(scope, receive).form(**limits, max_part_size=len(body)) as form:
            fields = [
                (key, value.encode("latin-1") if isinstance(value, str) else await value.read())
                for key, value in form.multi_items()
            ]
    except (MultiPartException, KeyError, ValueError) as cause:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the form cannot be read: {cause}") from None
    images = [value for key, value in fields if key in IMAGE_FIELDS]
    if len(images) != 1:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{len(images)} images; {ONE_IMAGE}")
    k = dict(fields).get("k")
    return PredictRequest(images[0], None if k is None else k.decode(errors="replace"))


def make_page(name: str, max_k: int, thumbnails: Path) -> str:
    """Return a page to try the model in a browser, with thumbnails of gallery images.

    Args:
        name: Name of the model.
        max_k: Maximum number of neighbours that a request may ask for.
        thumbnails: Folder with an image for each gallery row; if it is missing, the page shows no
            thumbnails.
    """
    files = list(thumbnails.iterdir()) if thumbnails.exists() else []
    values = {
        "name": name,
        "k": min(max_k, _PAGE_NEIGHBOURS),
        "thumbnails": len(files),
        "suffix": files[0].suffix if files else "",
    }
    html = _PAGE_HTML.read_text(encoding="utf-8")
    for key, value in values.items():
        html = html.replace(f"{{{{{key}}}}}", str(value))
    return html


def _error(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps({"error": reason})
    return Response(content, int(status), headers, media_type="application/json")

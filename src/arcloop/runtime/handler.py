"""The TorchServe handler: converts TorchServe's rows to requests, and responses to its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch

from .predictor import IMAGE_FIELDS, K_HEADER, ONE_IMAGE, Predictor, PredictRequest, RequestError

_BODY_FIELDS = ("body", *IMAGE_FIELDS)
"""TorchServe calls the raw request body "body" or, for some content types, "data"."""


class Handler:
    """The class that TorchServe calls: `initialize` once per worker, `handle` for each batch."""

    def initialize(self, context: Any) -> None:
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = gpu is not None and torch.cuda.is_available()
        self._predictor = Predictor(
            Path(properties["model_dir"]),
            context.model_yaml_config["handler"],
            f"cuda:{gpu}" if on_gpu else "cpu",
        )

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch; each row gets its own status.

        Args:
            rows: Fields of each request: the raw body as "body", form fields by their names.
            context: TorchServe's context, for headers, status and content type.

        Returns:
            A JSON body for each row.
        """
        requests: list[PredictRequest | RequestError] = []
        for number, row in enumerate(rows):
            try:
                requests.append(_read_row(row, context.get_all_request_header(number)))
            except RequestError as error:
                requests.append(error)
        responses = self._predictor.predict(requests)
        for number, response in enumerate(responses):
            phrase = HTTPStatus(response.status).phrase
            context.set_response_status(response.status, phrase, idx=number)
            context.set_response_content_type(number, "application/json")
        return [response.body for response in responses]


def _read_row(row: Mapping[str, Any], headers: Mapping[str, Any]) -> PredictRequest:
    """Find the image and k. TorchServe passes no query string, so k is a header or a form field.

    Raises:
        RequestError: There is not exactly one image.
    """
    found = [row[name] for name in _BODY_FIELDS if name in row]
    if len(found) != 1:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"{len(found)} images; {ONE_IMAGE}")
    if "k" in row:
        return PredictRequest(_to_bytes(found[0]), _to_bytes(row["k"]).decode(errors="replace"))
    values = [str(value) for name, value in headers.items() if name.lower() == K_HEADER]
    return PredictRequest(_to_bytes(found[0]), values[0] if values else None)


def _to_bytes(value: Any) -> bytes:
    """Undo TorchServe's decoding, which depends on the content type of the field."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    raise RequestError(HTTPStatus.BAD_REQUEST, "send the encoded image itself, not JSON")

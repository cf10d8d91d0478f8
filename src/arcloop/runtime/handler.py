"""TorchServe's rows -> the responder's questions, and its replies back. Archived with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arcloop.runtime.responder import K_HEADER, Question, RefusalError, Reply, Responder

IMAGE_FIELDS = ("body", "data", "image")


class Handler:
    """What TorchServe calls: `initialize` once per worker, then `handle` for every batch."""

    def initialize(self, context: Any) -> None:
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = gpu is not None and torch.cuda.is_available()
        self._responder = Responder(
            Path(properties["model_dir"]),
            context.model_yaml_config["handler"],
            f"cuda:{gpu}" if on_gpu else "cpu",
        )

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch; each row gets a status of its own.

        Args:
            rows: Fields of each request: the raw body as "body", those of a form by their names.
            context: TorchServe's, for headers, status and content type.
        """
        replies: list[Reply | None] = []
        questions = []
        for place, row in enumerate(rows):
            try:
                questions.append(_question(row, context.get_all_request_header(place)))
                replies.append(None)
            except RefusalError as refusal:
                replies.append(self._responder.refuse(refusal))
        answered = iter(self._responder.reply(questions))
        bodies = []
        for place, reply in enumerate(reply or next(answered) for reply in replies):
            context.set_response_status(reply.status, reply.phrase, idx=place)
            context.set_response_content_type(place, "application/json")
            bodies.append(reply.body)
        return bodies


def _question(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Question:
    """Find the image and k; TorchServe passes no query string on, so k is a header or a field.

    Raises:
        RefusalError: There is no image, or there are several.
    """
    found = [row[name] for name in IMAGE_FIELDS if name in row]
    if len(found) != 1:
        raise RefusalError(
            400, f"{len(found)} images; send one, as the body or a form's field 'image'"
        )
    if "k" in row:
        return Question(_bytes(found[0]), _bytes(row["k"]).decode(errors="replace"))
    named = [str(value) for name, value in headers.items() if name.lower() == K_HEADER]
    return Question(_bytes(found[0]), named[0] if named else None)


def _bytes(value: Any) -> bytes:
    """TorchServe may have decoded a field as text or JSON, by its content type."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    raise RefusalError(400, "the image must be sent as it is, not as JSON")

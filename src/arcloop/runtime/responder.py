"""An unpacked archive -> replies. What every server answers with; no serving framework in it.

Archived with the model, it runs without arcloop. One bad image gets a reply of its own that says
why, and never disturbs those that share its batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from . import images, searcher
from .cpus import available_cpus
from .golden_batch import GOLDEN, Golden

MANIFEST = "manifest.json"
K_HEADER = "x-arcloop-k"
"""How many neighbours are wanted, where the image is the body; a form has a field `k`."""


class ResponderError(RuntimeError):
    """The archive is damaged, or computes something else than the run it was made from."""


@dataclass(frozen=True)
class Question:
    """An encoded image, and how many neighbours are wanted (text as it came; None: the default)."""

    image: bytes
    k: str | None = None


@dataclass(frozen=True)
class Reply:
    """An HTTP status, its reason phrase, and a JSON body."""

    status: int
    phrase: str
    body: bytes


class RefusalError(ValueError):
    """A question that cannot be answered, with the status to tell it by."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Responder:
    """Answers questions with the model and the index of an unpacked archive.

    Ready when constructed: hashes are checked, and the golden batch went through and came out as
    the run's own embeddings would have it, which also warms the model up.

    Args:
        folder: The unpacked archive.
        settings: The section `handler` of its model-config.yaml.
        device: A torch device.

    Raises:
        ResponderError: A part is missing or changed, or the golden batch is answered wrongly.
        searcher.SearcherError: Model and index do not belong together.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], device: str = "cpu") -> None:
        self.manifest = verify(folder)
        self._settings = dict(settings)
        # One CPU is for the front end, which would else wait for threads that wait for it.
        _use_threads(max(1, (available_cpus() - 1) // int(settings["workers"])))
        self._searcher = searcher.Searcher.load(
            folder / searcher.MODEL,
            folder / searcher.INDEX,
            folder / searcher.LABELS,
            device=device,
            memory_map=bool(settings["memory_map"]),
        )
        self._signature = {
            "model": {"name": self.manifest["name"], "version": self.manifest["version"]},
            "lineage": self.manifest["parents"],
        }
        self._prove(folder)

    def reply(self, questions: Sequence[Question]) -> list[Reply]:
        """Answer a batch; a reply for each question, in order.

        200: {label, class_name, similarity, unknown, neighbours, model, lineage}.
        400, 413: {error, model}; `error` says what is wrong with this image or its k.
        """
        replies: list[Reply | None] = [None] * len(questions)
        accepted = []
        for place, question in enumerate(questions):
            try:
                pixels_HWC = self._decode(question.image)
                accepted.append((place, self._count(question.k), pixels_HWC))
            except RefusalError as refusal:
                replies[place] = self.refuse(refusal)
        if accepted:
            places, counts, pixels = zip(*accepted, strict=True)
            answers = self._searcher.answer(np.stack(pixels), max(counts))
            for place, count, answer in zip(places, counts, answers, strict=True):
                neighbours = [vars(neighbour) for neighbour in answer.neighbours[:count]]
                content = vars(answer) | {
                    "neighbours": neighbours
                }  # asdict() takes ten times as long
                replies[place] = _reply(200, "OK", content | self._signature)
        return [reply for reply in replies if reply is not None]

    def refuse(self, refusal: RefusalError) -> Reply:
        """Return the reply to a question that cannot be answered."""
        phrase = {400: "Bad Request", 413: "Payload Too Large"}[refusal.status]
        content = {"error": str(refusal), "model": self._signature["model"]}
        return _reply(refusal.status, phrase, content)

    def _count(self, text: str | None) -> int:
        if text is None:
            return int(self._settings["default_k"])
        largest = int(self._settings["max_k"])
        digits = text.isascii() and text.isdecimal() and len(text) <= len(str(largest))
        if not digits or not 1 <= int(text) <= largest:
            raise RefusalError(400, f"k={text[:20]!r} must be a number from 1 to {largest}")
        return int(text)

    def _decode(self, image: bytes) -> Any:
        largest = int(self._settings["max_request_bytes"])
        if len(image) > largest:
            raise RefusalError(413, f"{len(image):,} bytes; at most {largest:,} are read")
        height, width, channels = self._searcher.model.image_shape
        try:
            return images.decode(
                image,
                height=height,
                width=width,
                channels=channels,
                max_pixels=int(self._settings["max_pixels"]),
            )
        except images.ImageError as cause:
            raise RefusalError(400, str(cause)) from None

    def _prove(self, folder: Path) -> None:
        tolerance = float(self._settings["parity_tolerance"])
        golden = Golden(folder / GOLDEN, self._searcher.index, tolerance=tolerance)
        answers = self._searcher.answer(golden.images_NHWC, golden.k)
        if fault := golden.fault([answer.as_dict() for answer in answers]):
            raise ResponderError(f"the parity gate refuses this archive: {fault}")


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of an unpacked archive whose every part is as it was archived.

    Raises:
        ResponderError: A part is missing or has other contents.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        for name, entry in manifest["files"].items():
            with open(folder / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise ResponderError(f"{name} has other contents than when it was archived")
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ResponderError(f"{folder} is not an unpacked archive: {cause}") from None
    return manifest


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    # A serving framework may have lowered it, and embeddings would differ from the run's.
    torch.set_float32_matmul_precision("highest")


def _reply(status: int, phrase: str, content: Mapping[str, Any]) -> Reply:
    return Reply(status, phrase, json.dumps(content, separators=(",", ":")).encode())

"""Answers prediction requests with the model and index of an unpacked archive.

All servers call this module, and it depends on no serving framework. Each archive contains a copy
of it that runs without arcloop. An invalid image gets its own error response and does not affect
the other requests of its batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import faiss
import joblib
import numpy as np
import numpy.typing as npt
import torch

from . import MANIFEST
from .golden_batch import GOLDEN, GoldenBatch
from .images import ImageError
from .prediction import Prediction
from .runtimes import load_runtime, runtime_of
from .searcher import INDEX, LABELS, Searcher, read_index, read_labels

K_HEADER = "x-arcloop-k"
"""Header with the number of neighbours, for an image sent as the body; a form has a field `k`."""
IMAGE_FIELDS = ("data", "image")
"""Names of the form field that contains the image."""
ONE_IMAGE = "send one image, as the body or as the form field 'image'"


class ArchiveError(RuntimeError):
    """The archive is damaged, or its answers differ from the reference answers of its run."""


@dataclass(frozen=True)
class PredictRequest:
    """A prediction request.

    Attributes:
        image: The encoded image.
        k: Number of neighbours, as the text that the client sent; None selects the default.
    """

    image: bytes
    k: str | None = None


@dataclass(frozen=True)
class DecodedRequest:
    """A prediction request whose image is decoded.

    Attributes:
        image: uint8 [H, W, C] of the model's shape.
        k: Number of neighbours.
    """

    image: npt.NDArray[np.uint8]
    k: int


@dataclass(frozen=True)
class PredictResponse:
    """An HTTP status and a JSON body."""

    status: int
    body: bytes


class RequestError(ValueError):
    """The request is invalid.

    Args:
        status: HTTP status of the response.
        reason: What is wrong with the request.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Predictor:
    """Answers batches of requests with the model and the index of an unpacked archive.

    The constructor verifies all hashes and the answers to the golden batch. This also warms up the
    model, so a constructed predictor is ready for requests.

    Args:
        folder: The unpacked archive.
        settings: The section `handler` of its model-config.yaml.
        device: A torch device.

    Attributes:
        golden: The golden batch of the archive, to compare the answers of a server with.

    Raises:
        ArchiveError: A part is missing or changed, or an answer to the golden batch differs.
        SearcherError: Model and index do not belong together.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], device: str = "cpu") -> None:
        self.manifest = verify_hashes(folder)
        self._settings = dict(settings)
        # Leave one CPU to the HTTP server, so that requests do not wait for threads of the model.
        threads = max(1, (joblib.cpu_count() - 1) // int(settings["workers"]))
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        # Serving frameworks may lower the precision, which would change the embeddings.
        torch.set_float32_matmul_precision("highest")
        self._searcher = Searcher(
            load_runtime(folder, self.manifest, device, threads),
            read_index(folder / INDEX, memory_map=bool(settings["memory_map"])),
            read_labels(folder / LABELS),
        )
        self._identity = {
            "model": {
                "name": self.manifest["name"],
                "version": self.manifest["version"],
                "runtime": runtime_of(self.manifest),
            },
            "lineage": self.manifest["parents"],
            "threshold": self._searcher.threshold_facts,
        }
        tolerance = float(settings["parity_tolerance"])
        self.golden = GoldenBatch(
            folder / GOLDEN, self._searcher.index, tolerance=tolerance,
            equal_rows=self._searcher.equal_rows,
        )  # fmt: skip
        predictions = self._searcher.predict(self.golden.images_NHWC, self.golden.k)
        if mismatch := self.golden.find_mismatch([one.as_dict() for one in predictions]):
            raise ArchiveError(f"the archive fails the parity check: {mismatch}")

    def decode(
        self, request: PredictRequest | DecodedRequest | RequestError
    ) -> DecodedRequest | PredictResponse:
        """Decode the image of a request, or return the response if that is not possible."""
        if isinstance(request, DecodedRequest):
            return request
        try:
            if isinstance(request, RequestError):
                raise request
            max_pixels = int(self._settings["max_pixels"])
            image_HWC = self._searcher.model.decode(request.image, max_pixels)
            return DecodedRequest(image_HWC, self._parse_k(request.k))
        except RequestError as error:
            return self.error_response(error.status, str(error))
        except ImageError as error:
            return self.error_response(HTTPStatus.BAD_REQUEST, str(error))

    def predict(
        self, requests: Sequence[PredictRequest | DecodedRequest | RequestError]
    ) -> list[PredictResponse]:
        """Answer a batch.

        Args:
            requests: The requests. A server may pass the `RequestError` of a request that it could
                not read in the place of that request.

        Returns:
            A response for each request, in order. Status 200 has the fields label, class_name,
            similarity, unknown, neighbours, model, lineage and threshold, and quality if the model
            has it. Other statuses have the fields error and model; `error` says what is wrong with
            this request.
        """
        results: list[DecodedRequest | PredictResponse] = [self.decode(one) for one in requests]
        accepted = [one for one in results if isinstance(one, DecodedRequest)]
        if not accepted:
            return [one for one in results if isinstance(one, PredictResponse)]
        images_NHWC = np.stack([one.image for one in accepted])
        predictions = iter(self._searcher.predict(images_NHWC, max(one.k for one in accepted)))
        return [
            self._respond(next(predictions), one.k) if isinstance(one, DecodedRequest) else one
            for one in results
        ]

    def _respond(self, prediction: Prediction, k: int) -> PredictResponse:
        # vars() instead of dataclasses.asdict(), which copies every value recursively.
        neighbours = [vars(neighbour) for neighbour in prediction.neighbours[:k]]
        content = vars(prediction) | {"neighbours": neighbours} | self._identity
        if prediction.quality is None:
            del content["quality"]
        return _json_response(HTTPStatus.OK, content)

    def error_response(self, status: int, reason: str) -> PredictResponse:
        """Return the response to an invalid request."""
        return _json_response(status, {"error": reason, "model": self._identity["model"]})

    def _parse_k(self, text: str | None) -> int:
        if text is None:
            return int(self._settings["default_k"])
        largest = int(self._settings["max_k"])
        digits = text.isascii() and text.isdecimal() and len(text) <= len(str(largest))
        if not digits or not 1 <= int(text) <= largest:
            reason = f"k={text[:20]!r} must be a number from 1 to {largest}"
            raise RequestError(HTTPStatus.BAD_REQUEST, reason)
        return int(text)


def verify_hashes(folder: Path) -> dict[str, Any]:
    """Verify the hash of every part of an unpacked archive.

    Returns:
        The archive's manifest.

    Raises:
        ArchiveError: A part is missing or its contents have changed.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        for name, entry in manifest["files"].items():
            with open(folder / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise ArchiveError(f"{name} has changed since it was archived")
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ArchiveError(f"{folder} is not an unpacked archive: {cause}") from None
    return manifest


def _json_response(status: int, content: Mapping[str, Any]) -> PredictResponse:
    return PredictResponse(int(status), json.dumps(content, separators=(",", ":")).encode())

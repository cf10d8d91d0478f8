"""Decodes large images apart from the model, so that requests with small images do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from arcloop.runtime.images import size_of
from arcloop.runtime.predictor import DecodedRequest, PredictRequest, PredictResponse

_PIXELS, _MAX_WAITING = 1 << 20, 8


class LargeImages:
    """Decodes large images in one thread, so that only one of them is in memory.

    Args:
        decode: `Predictor.decode`; None for an archive of a version without this method, which
            decodes all images itself.
    """

    def __init__(
        self, decode: Callable[[PredictRequest], DecodedRequest | PredictResponse] | None
    ) -> None:
        self._decode, self._waiting = decode, 0
        self._thread = ThreadPoolExecutor(1, "decode")

    def contains(self, encoded: bytes) -> bool:
        """Return whether an image is large; a file of a few kB may contain many pixels."""
        if self._decode is None:
            return False
        try:
            height, width = size_of(encoded)
        except Exception:  # noqa: BLE001 - the predictor reports what is wrong with the image
            return False
        return height * width > _PIXELS

    async def decode(self, request: PredictRequest) -> DecodedRequest | PredictResponse:
        """Decode the image of a request, or return the response if that is not possible.

        Raises:
            asyncio.QueueFull: Too many large images are waiting.
        """
        assert self._decode is not None
        if self._waiting >= _MAX_WAITING:
            raise asyncio.QueueFull(f"{_MAX_WAITING} large images are waiting already")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._decode, request
            )
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Decode the waiting images, then stop the thread."""
        self._thread.shutdown()

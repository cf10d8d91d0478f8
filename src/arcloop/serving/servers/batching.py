"""Dynamic batching: collects single requests into batches for the thread that runs the model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from arcloop.runtime.predictor import PredictRequest, PredictResponse

_QueuedRequest = tuple[PredictRequest, Future[PredictResponse]]
_WAIT_SHARE = 0.05
"""How long to wait for more requests, as a share of the duration of the previous batch."""


class OverloadedError(RuntimeError):
    """The queue is full."""


class Batcher:
    """Answers all queued requests in one batch, up to a maximum, when the model is idle.

    A single request is answered immediately. Under load, batches fill while the previous batch is
    computed. After a batch, the thread waits for a small share of the batch's duration, so that
    clients can send their next requests. The model's thread takes batches directly from the queue
    and does not wait for the event loop.

    Args:
        predict_batch: Answers a batch. Called from one separate thread.
        batch_size: Maximum number of requests in a batch.
        queue_size: Maximum number of requests in the queue.
    """

    def __init__(
        self,
        predict_batch: Callable[[Sequence[PredictRequest]], list[PredictResponse]],
        *,
        batch_size: int,
        queue_size: int,
    ) -> None:
        self._predict_batch = predict_batch
        self._batch_size, self._queue_size = batch_size, queue_size
        self._queue: queue.SimpleQueue[_QueuedRequest | None] = queue.SimpleQueue()
        self._wait_s = 0.0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Answer one request, in a batch with other queued requests.

        Raises:
            OverloadedError: The queue is full.
        """
        if self._queue.qsize() >= self._queue_size:
            raise OverloadedError(f"{self._queue_size} requests are waiting already")
        future: Future[PredictResponse] = Future()
        self._queue.put((request, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Answer the queued requests, then stop the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            # A request is cancelled if its client has disconnected or it has timed out.
            active = [one for one in batch if one[1].set_running_or_notify_cancel()]
            if active:
                start = time.perf_counter()
                self._answer(active)
                duration = time.perf_counter() - start
                self._wait_s = _WAIT_SHARE * duration if len(active) > 1 else 0.0

    def _next_batch(self) -> list[_QueuedRequest]:
        """Wait for a request, and take the requests queued after it; empty when closed."""
        batch: list[_QueuedRequest] = []
        queued = self._queue.get()
        deadline = time.perf_counter() + self._wait_s
        while queued is not None:
            batch.append(queued)
            if len(batch) == self._batch_size:
                return batch
            try:
                queued = self._queue.get(timeout=max(0.0, deadline - time.perf_counter()))
            except queue.Empty:
                return batch
        self._queue.put(None)  # the next call returns an empty list
        return batch

    def _answer(self, batch: Sequence[_QueuedRequest]) -> None:
        try:
            responses = self._predict_batch([request for request, _ in batch])
            for (_, future), response in zip(batch, responses, strict=True):
                future.set_result(response)
        except Exception as cause:  # noqa: BLE001 - raised in `predict` for each of these requests
            for _, future in batch:
                future.set_exception(cause)

"""Dynamic batching: collects single requests into batches for the thread that runs the model."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from arcloop.runtime.predictor import DecodedRequest, PredictRequest, PredictResponse

AnyRequest = PredictRequest | DecodedRequest
_QueuedRequest = tuple[AnyRequest, Future[PredictResponse]]
_WAIT_SHARE = 0.05
"""How long to wait for more requests, as a share of the duration of the previous batch."""


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
        predict_batch: Callable[[Sequence[AnyRequest]], list[PredictResponse]],
        *,
        batch_size: int,
        queue_size: int,
    ) -> None:
        self._predict_batch = predict_batch
        self._batch_size, self._queue_size = batch_size, queue_size
        self._queue: deque[_QueuedRequest] = deque()
        self._wait_s = 0.0
        self._is_busy, self._progress = False, time.monotonic()
        self._thread = ThreadPoolExecutor(1, "model")

    async def predict(self, request: AnyRequest, *, first: bool = False) -> PredictResponse:
        """Answer one request, in a batch with other queued requests.

        Args:
            request: The request.
            first: Answer it in the next batch, also if the queue is full. For readiness probes: a
                server that has as many requests as it accepts is ready.

        Raises:
            asyncio.QueueFull: The queue is full.
        """
        if len(self._queue) >= self._queue_size and not first:
            raise asyncio.QueueFull(f"{self._queue_size} requests are waiting already")
        if not self._has_work():
            self._progress = time.monotonic()
        future: Future[PredictResponse] = Future()
        (self._queue.appendleft if first else self._queue.append)((request, future))
        if len(self._queue) <= 1:  # otherwise a pending call of `_answer_all` takes this request
            self._thread.submit(self._answer_all)
        return await asyncio.wrap_future(future)

    def stalled_s(self) -> float:
        """Return for how many seconds the thread has had work without finishing a batch."""
        return time.monotonic() - self._progress if self._has_work() else 0.0

    def _has_work(self) -> bool:
        return self._is_busy or bool(self._queue)

    def close(self) -> None:
        """Answer the queued requests, then stop the thread."""
        self._thread.shutdown()

    def _answer_all(self) -> None:
        while self._queue:
            if len(self._queue) < self._batch_size:
                time.sleep(self._wait_s)
            count = min(len(self._queue), self._batch_size)
            queued = [self._queue.popleft() for _ in range(count)]
            # A request is cancelled if its client has disconnected or it has timed out.
            batch = [one for one in queued if one[1].set_running_or_notify_cancel()]
            if batch:
                start = time.perf_counter()
                self._is_busy = True
                self._answer(batch)
                self._is_busy = False
                duration = time.perf_counter() - start
                self._wait_s = _WAIT_SHARE * duration if len(batch) > 1 else 0.0
            self._progress = time.monotonic()

    def _answer(self, batch: Sequence[_QueuedRequest]) -> None:
        try:
            responses = self._predict_batch([request for request, _ in batch])
            for (_, future), response in zip(batch, responses, strict=True):
                future.set_result(response)
        except Exception as cause:  # noqa: BLE001 - raised in `predict` for each of these requests
            for _, future in batch:
                future.set_exception(cause)

"""Requests that come one by one -> batches for one thread that holds the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from responder import Question, Reply


class OverloadedError(RuntimeError):
    """As many requests wait as may."""


class Batcher:
    """Answers what waits, all of it at once up to a limit, whenever the model is free.

    A lone request is answered at once; under load, batches fill by themselves while the one before
    is computed, so nothing ever waits for a batch to fill.

    Args:
        reply: Answers a batch; runs in a thread of its own, one call at a time.
        batch_size: Most questions in a call.
        queue_size: Most questions that wait.
    """

    def __init__(
        self,
        reply: Callable[[Sequence[Question]], list[Reply]],
        *,
        batch_size: int,
        queue_size: int,
    ) -> None:
        self._reply, self._batch_size, self._queue_size = reply, batch_size, queue_size
        self._waiting: deque[tuple[Question, asyncio.Future[Reply]]] = deque()
        self._thread = ThreadPoolExecutor(1, "model")
        self._working: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    async def answer(self, question: Question) -> Reply:
        """Answer one question together with those that wait beside it.

        Raises:
            OverloadedError: Too many wait already.
        """
        if len(self._waiting) >= self._queue_size:
            raise OverloadedError(f"{self._queue_size} requests wait already")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await future

    def close(self) -> None:
        """End the thread, after the batch it is at."""
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch: list[tuple[Question, asyncio.Future[Reply]]] = []
                while self._waiting and len(batch) < self._batch_size:
                    question, future = self._waiting.popleft()
                    if not future.done():  # its client may have given up
                        batch.append((question, future))
                if batch:
                    await self._answer_batch(loop, batch)
        finally:
            self._working = None

    async def _answer_batch(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Sequence[tuple[Question, asyncio.Future[Reply]]],
    ) -> None:
        try:
            questions = [question for question, _ in batch]
            replies = await loop.run_in_executor(self._thread, self._reply, questions)
        except Exception as cause:  # noqa: BLE001 - those who asked are told, the others served
            for _, future in batch:
                if not future.done():
                    future.set_exception(cause)
            return
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(reply)

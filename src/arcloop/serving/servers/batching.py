"""Requests that come one by one -> batches for one thread that holds the model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence

from arcloop.runtime.responder import Question, Reply

_GRACE_SHARE = 0.05


class OverloadedError(RuntimeError):
    """As many requests wait as may."""


class Batcher:
    """Answers what waits, all of it at once up to a limit, whenever the model is free.

    A lone request is answered at once. Under load, batches fill by themselves while the one before
    is computed, and those whose clients were just answered and ask again have a moment to come, a
    small share of the time that a batch takes. The model's thread takes the next batch by itself:
    it would else stand still until the event loop, which has requests to read, gets to it.

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
        self._waiting: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._grace_s = 0.0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Questions that wait."""
        return self._waiting.qsize()

    async def answer(self, question: Question) -> Reply:
        """Answer one question together with those that wait beside it.

        Raises:
            OverloadedError: Too many wait already.
        """
        if len(self) >= self._queue_size:
            raise OverloadedError(f"{self._queue_size} requests wait already")
        asked = _Asked(question)
        self._waiting.put(asked)
        return await asked.future

    def close(self) -> None:
        """End the thread, after what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            wanted = [asked for asked in batch if not asked.future.done()]  # some have given up
            if wanted:
                start = time.perf_counter()
                self._answer_batch(wanted)
                spent = time.perf_counter() - start
                self._grace_s = _GRACE_SHARE * spent if len(wanted) > 1 else 0.0

    def _next_batch(self) -> list[_Asked]:
        """Wait for a question, and take those behind it; none when closed."""
        batch: list[_Asked] = []
        asked = self._waiting.get()
        until = time.perf_counter() + self._grace_s
        while asked is not None:
            batch.append(asked)
            if len(batch) == self._batch_size:
                return batch
            try:
                asked = self._waiting.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                return batch
        self._waiting.put(None)  # for the next call, which finds nothing before it
        return batch

    def _answer_batch(self, batch: Sequence[_Asked]) -> None:
        outcome: list[Reply] | Exception
        try:
            outcome = self._reply([asked.question for asked in batch])
        except Exception as cause:  # noqa: BLE001 - those who asked are told, the others served
            outcome = cause
        batch[0].loop.call_soon_threadsafe(_settle, batch, outcome)


class _Asked:
    """A question, and where its reply is waited for."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Reply] = self.loop.create_future()


def _settle(batch: Sequence[_Asked], outcome: list[Reply] | Exception) -> None:
    for place, asked in enumerate(batch):
        if asked.future.done():
            continue
        if isinstance(outcome, Exception):
            asked.future.set_exception(outcome)
        else:
            asked.future.set_result(outcome[place])

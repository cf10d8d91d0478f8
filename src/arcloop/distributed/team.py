"""The share of one process of a training in several: objects travel over gloo, on any device."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from arcloop.distributed.process_group import ALONE, Share
from arcloop.errors import ArcloopError, ResourceError

T = TypeVar("T")

# Rank zero may build an index for hours while the others wait. A process that ends is noticed at
# once whatever this is: its connections close, and its launcher stops the others.
_PATIENCE = datetime.timedelta(days=7)


def own_share() -> Share:
    """Return this process's share; a collective where training is distributed."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return _team(dist.group.WORLD)


@functools.cache
def _team(_world: Any) -> Share:
    return Team(dist.new_group(backend="gloo", timeout=_PATIENCE))


class Team(Share):
    """One process of several.

    What a process's work raises is carried to those that wait for it, so that all of them end.

    Args:
        group: A gloo group of all processes.
    """

    def __init__(self, group: Any) -> None:
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._group = group

    def tell(self, work: Callable[[], T]) -> T:
        box: list[Any] = [_attempt(work) if self.rank == 0 else None]
        self._exchange(lambda: dist.broadcast_object_list(box, src=0, group=self._group))
        told: T = self._unpacked(box)[0]
        return told

    def gather(self, work: Callable[[], T]) -> list[T] | None:
        own = _attempt(work)
        boxes: list[Any] | None = [None] * self.world if self.rank == 0 else None
        self._exchange(lambda: dist.gather_object(own, boxes, dst=0, group=self._group))
        if boxes is None:
            self._unpacked([None] * self.rank + [own])
            return None
        return self._unpacked(boxes)

    def _exchange(self, collective: Callable[[], None]) -> None:
        try:
            collective()
        except RuntimeError as cause:  # what gloo makes of a connection that closed
            raise ResourceError(
                f"rank {self.rank} cannot go on: another process of this training has ended",
                remedy="see the message of the process that ended first",
            ) from cause

    def _unpacked(self, outcomes: list[Any]) -> list[Any]:
        """Return the values, or raise what the first process that failed met with."""
        for rank, outcome in enumerate(outcomes):
            if isinstance(outcome, _Failure):
                if rank == self.rank:
                    raise outcome.cause
                raise outcome.seen_from_elsewhere(rank)
        return outcomes


class _Failure:
    """What came of work that raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        # Not every exception can be sent; its kind decides on the exit code, its text is shown.
        kind = type(self.cause) if isinstance(self.cause, ArcloopError) else ResourceError
        text = getattr(self.cause, "what", None) or f"{type(self.cause).__name__}: {self.cause}"
        return _Failure, (kind(text),)

    def seen_from_elsewhere(self, rank: int) -> ArcloopError:
        """Return the error of a process that waited for the one that failed."""
        assert isinstance(self.cause, ArcloopError)
        return type(self.cause)(
            f"rank {rank} failed: {self.cause.what}", remedy="see the message of that process"
        )


def _attempt(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as cause:  # noqa: BLE001 - whatever it is, those who wait must hear of it
        return _Failure(cause)

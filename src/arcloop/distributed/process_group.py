"""The processes of one training job and the Python objects that they exchange.

Functions that can run in several processes take a `ProcessGroup`. `SINGLE_PROCESS` is the group of
a process that runs alone. Objects are sent over gloo, which works on any device.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from arcloop.errors import ArcloopError, ResourceError

T = TypeVar("T")

# Rank 0 may build an index for hours while the other ranks wait. If a rank exits, its
# connections are closed, and the others detect this immediately, regardless of the timeout.
_TIMEOUT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank and the collective operations on Python objects.

    Every rank calls `broadcast`, `gather` and `barrier` in the same order, so none of these calls
    may be in a branch that only some ranks take.

    Args:
        rank: Rank of this process, in [0, world_size).
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def shard(self, num_rows: int, unit: int = 1) -> range:
        """Return the rows of this rank: contiguous, with boundaries at multiples of `unit`.

        With `unit` set to the batch size, every batch has the same rows for any number of
        processes, so sums and matrix products are bit-identical.

        Args:
            num_rows: Number of rows of all ranks.
            unit: Number of rows that stay together.

        >>> [ProcessGroup(rank, 3).shard(7) for rank in range(3)]
        [range(0, 2), range(2, 4), range(4, 7)]
        """
        units = -(-num_rows // unit)
        first, last = (units * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return range(min(first * unit, num_rows), min(last * unit, num_rows))

    def broadcast(self, compute: Callable[[], T]) -> T:
        """Call `compute` on rank 0 and return its result on every rank.

        Raises:
            ArcloopError: `compute` failed on rank 0, or a process has exited.
        """
        if self.world_size == 1:
            return compute()
        result, error = self._try(compute) if self.rank == 0 else (None, None)
        box: list[Any] = [result]
        with self._report_exited_process() as (dist, group):
            dist.broadcast_object_list(box, src=0, group=group)
        if error is not None:
            raise error
        _raise_failures(box)
        received: T = box[0]
        return received

    def gather(self, compute: Callable[[], T]) -> list[T] | None:
        """Call `compute` on every rank.

        Returns:
            The results in order of rank on rank 0, None on the others.

        Raises:
            ArcloopError: `compute` failed on this rank (on rank 0: on any rank), or a process has
                exited.
        """
        if self.world_size == 1:
            return [compute()]
        result, error = self._try(compute)
        results: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        with self._report_exited_process() as (dist, group):
            dist.gather_object(result, results, dst=0, group=group)
        if error is not None:
            raise error
        _raise_failures(results or [])
        return results

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.world_size > 1:
            with self._report_exited_process() as (dist, group):
                dist.barrier(group=group)

    def _try(self, compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """Return (result, None), or (the error for the other ranks, the original error)."""
        try:
            return compute(), None
        except Exception as error:  # noqa: BLE001 - waiting ranks must receive every failure
            kind: type[ArcloopError] = ResourceError
            message = f"{type(error).__name__}: {error}"
            if isinstance(error, ArcloopError):
                kind, message = type(error), error.what
            remedy = "see the error message of that process"
            return kind(f"rank {self.rank} failed: {message}", remedy=remedy), error

    @contextlib.contextmanager
    def _report_exited_process(self) -> Iterator[tuple[Any, Any]]:
        """Yield torch.distributed and the gloo group; convert a lost connection to an error."""
        import torch.distributed as dist

        try:
            yield dist, gloo_group(dist.group.WORLD)
        except RuntimeError as cause:  # gloo raises it when a connection is closed
            raise ResourceError(
                f"rank {self.rank} cannot continue: another process of this training has exited",
                remedy="see the error message of the process that exited first",
            ) from cause


SINGLE_PROCESS = ProcessGroup()


def current_process_group() -> ProcessGroup:
    """Return the process group that torch.distributed has set up, or `SINGLE_PROCESS`."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size())
    return SINGLE_PROCESS


def launched_rank() -> int:
    """Return the rank that the launcher gave this process, also before the group is set up."""
    return int(os.environ.get("RANK", "0"))


def leave_process_group() -> None:
    """Destroy the process group of this process, if there is one, after the last collective.

    A group that still exists at interpreter exit may abort the process, because its threads
    outlive the objects that they use.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@functools.cache
def gloo_group(_world: Any) -> Any:
    """Return a gloo group of all ranks. The argument is the cache key: one per process group."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_TIMEOUT)


def _raise_failures(results: list[Any]) -> None:
    """Raise the first error among the results of the ranks."""
    for result in results:
        if isinstance(result, ArcloopError):
            raise result

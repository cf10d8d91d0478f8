"""Work that several processes do together, each its share, with a result that no share shows in.

Functions that take a `Share` know nothing of how processes talk to each other. `ALONE` is the share
of the only process; `arcloop.distributed.team` has that of one process of a training in several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Share:
    """What the only process has: all of the work, and nobody to talk to.

    Every process calls `tell` and `gather` in the same order, and none of them within a branch that
    not all processes take.

    Attributes:
        rank: This process, from 0.
        world: Number of processes.
    """

    rank = 0
    world = 1

    def part(self, total: int, unit: int = 1) -> range:
        """Return which of `total` rows are this process's: contiguous, cut at multiples of `unit`.

        Work that goes by `unit` rows at a time meets the same rows together in any number of
        processes, so that a sum or a product has the same last bits.

        >>> ALONE.part(7)
        range(0, 7)
        """
        units = -(-total // unit)
        first, last = (units * rank // self.world for rank in (self.rank, self.rank + 1))
        return range(min(first * unit, total), min(last * unit, total))

    def tell(self, work: Callable[[], T]) -> T:
        """Let rank zero do `work`, and return what it returned on every process."""
        return work()

    def gather(self, work: Callable[[], T]) -> list[T] | None:
        """Do `work` on every process; rank zero gets what all returned, by rank, others None."""
        return [work()]

    def meet(self) -> None:
        """Wait until rank zero is here too."""
        self.tell(lambda: None)


ALONE = Share()

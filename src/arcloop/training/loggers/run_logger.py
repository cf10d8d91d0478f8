"""A logger that knows the run it logs: what it begins as, and where it goes on after a kill."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger


class RunLogger(Logger):
    """Lightning's logger with the two moments of a run that Lightning does not tell it of."""

    @abstractmethod
    def begin(self, config: Mapping[str, Any], step: int) -> None:
        """Hear that training begins, or goes on; called on rank zero before it does.

        Args:
            config: The resolved config.
            step: Optimizer steps done by the checkpoint that it goes on from; they count from 0.
        """

    @abstractmethod
    def flush(self) -> None:
        """Write all that was logged, for a checkpoint must not be ahead of it."""

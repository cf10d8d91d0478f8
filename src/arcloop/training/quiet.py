"""Keeps from the terminal what Lightning says of choices that were made on purpose."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("pytorch_lightning", "lightning_fabric")
_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # batches are gathered at once
    "The number of training batches",  # fewer than a logging interval: fine
    "Checkpoint directory .* exists and is not empty",  # it is being resumed
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's use of torch
    "GPU available but not used",  # trainer=cpu
    "It is recommended to use `self.log\\(.*sync_dist=True",  # val_top1 is the same on every rank
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, Lightning's notes are not shown and the warnings above are ignored."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

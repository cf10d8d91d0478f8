"""last.ckpt: written where nothing is half done, so that a run goes on to the very same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from arcloop.config.value_types import PositiveInt, check
from arcloop.display.terminal import say
from arcloop.errors import ArtifactError, ConfigError
from arcloop.models import ShardedArcFace, compare
from arcloop.models.checkpoints import LAST, PREVIOUS, read_checkpoint
from arcloop.training.loggers.run_logger import RunLogger
from arcloop.training.optim.sharding import HEAD_WEIGHT

_PARTS = (
    ("embedder.backbone.", "backbone"),
    ("embedder.", "embedder (embedder.embedding_dim, or the size of the images)"),
    ("", "head, or of other classes"),
)
"""Prefix of the weights' names -> what the config calls them."""


class LastCheckpoint(Callback):
    """Writes last.ckpt at the start of every epoch, after the last one, and every few steps.

    It is written just before a batch is trained on, the one moment at which everything about the
    batch before it is over: its optimizer step, its validation, its logged row. A checkpoint of the
    end of a batch, as Lightning's ModelCheckpoint writes it, would lose that batch's row.

    Args:
        dirpath: Folder to write to.
        every_n_steps: Optimizer steps between two checkpoints within an epoch; None: only at its
            start.
    """

    def __init__(self, *, dirpath: str, every_n_steps: PositiveInt | None) -> None:
        check("callbacks.last", every_n_steps=(every_n_steps, PositiveInt | None))
        self._dirpath, self._every = Path(dirpath), every_n_steps
        self._saved_at: int | None = None
        self._resumed = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._resumed:
            # The step that loggers are told: Lightning has counted a batch that never was one.
            trainer.fit_loop.epoch_loop._batches_that_stepped = step  # noqa: SLF001
            self._resumed, self._saved_at = False, step
        gradients_pending = batch_idx % trainer.accumulate_grad_batches != 0
        due = batch_idx == 0 or (self._every is not None and step % self._every == 0)
        if due and not gradients_pending and step > 0 and step != self._saved_at:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_at:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.flush()  # first: rows that are missing could not be had again
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(self._dirpath / LAST)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = True


def newest_whole(checkpoints: Path) -> tuple[Path, int] | None:
    """Find the checkpoint to go on from.

    A damaged last.ckpt is said, and the one before it is taken.

    Args:
        checkpoints: Folder of last.ckpt.

    Returns:
        (path, optimizer steps done), or None if there is no checkpoint.

    Raises:
        ArtifactError: There are only damaged ones.
    """
    damaged: ArtifactError | None = None
    for name in (LAST, PREVIOUS):
        path = checkpoints / name
        if path.is_file():
            try:
                step = int(read_checkpoint(path)["global_step"])
            except ArtifactError as cause:
                say(f"warning: {cause.what}: {path}")
                damaged = cause
            else:
                return path, step
    if damaged is not None:
        raise damaged
    return None


def require_fit(checkpoint: Path, module: pl.LightningModule) -> None:
    """Refuse to go on from a checkpoint of another model, before anything is loaded.

    Raises:
        ConfigError: Its weights are not those of this module; says which part, and how they differ.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    found = compare(state, module)
    head: Any = module.head
    if isinstance(head, ShardedArcFace) and HEAD_WEIGHT in state:
        classes, dim = state[HEAD_WEIGHT].shape  # its own is known only when it is split
        if classes != head.num_classes:
            wrong = (HEAD_WEIGHT, (classes, dim), (head.num_classes, dim))
            found = replace(found, misshapen=[*found.misshapen, wrong])
    if found.whole:
        return
    names = [*found.missing, *found.unexpected, *(name for name, _, _ in found.misshapen)]
    # The first part that differs decides what comes after it: the neck follows the backbone.
    group = next(group for part, group in _PARTS if any(name.startswith(part) for name in names))
    raise ConfigError(
        f"this checkpoint is of another {group}: {found}",
        where=checkpoint,
        remedy="resume with the settings the run was started with (config.yaml beside it), or"
        " choose another run_dir=",
    )

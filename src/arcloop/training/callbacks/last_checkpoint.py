"""The callback that writes last.ckpt, also when the job is terminated."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from arcloop.artifacts.atomic import temporary_sibling
from arcloop.config.value_types import PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.distributed.collectives import start_any
from arcloop.errors import Terminated, raise_terminated
from arcloop.models.checkpoints import LAST, PREVIOUS
from arcloop.training.callbacks.best_checkpoint import BestCheckpoint
from arcloop.training.loggers import RunLogger

_ENDED_EARLY = "ended_early"


class LastCheckpoint(Callback):
    """Writes last.ckpt at the start of each epoch, every n steps, and at the end of the fit.

    After SIGTERM, which clusters send before they end a job, it writes last.ckpt before the next
    optimizer step and stops the fit. In a training with several processes, all ranks stop at the
    same step as soon as one of them has received the signal.

    A finished run keeps best.ckpt and last.ckpt; if both have the same weights, they are one file
    with two names.

    The checkpoint is written immediately before a training step. At this point the previous step is
    complete: optimizer step, validation and logged row. Lightning's ModelCheckpoint saves at the
    end of a batch, before the row is logged, so a resumed run would lose the row.

    Args:
        dirpath: Folder of last.ckpt.
        every_n_steps: Optimizer steps between two checkpoints within an epoch; None saves only at
            the start of an epoch and at the end.
        keep: Keep last.ckpt when the run is finished, so that `resume=true` can continue it.
        stop_at_step: Stop after this number of optimizer steps in the same way as after SIGTERM;
            None trains to the end.
    """

    @checked("callbacks.last")
    def __init__(
        self,
        *,
        dirpath: str,
        every_n_steps: PositiveInt | None,
        keep: bool,
        stop_at_step: PositiveInt | None = None,
    ) -> None:
        self._dirpath, self._every, self._stop_at = Path(dirpath), every_n_steps, stop_at_step
        self._keep = keep
        self._saved_at: int | None = None
        self._resumed = False
        self._received = self._stopping = False
        self._any_received: Callable[[], bool] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Replaces Lightning's handler, which calls a collective operation when the signal arrives.
        self._handle_sigterm(self._receive)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._resumed:
            # Loggers receive this counter as the step. After resuming it is too high by 1:
            # https://github.com/Lightning-AI/pytorch-lightning/issues/13752
            trainer.fit_loop.epoch_loop._batches_that_stepped = step  # noqa: SLF001
            self._resumed, self._saved_at = False, step
        self._stopping = self._stopping or step == self._stop_at or self._is_sigterm_known(trainer)
        if batch_idx % trainer.accumulate_grad_batches != 0:
            return  # a checkpoint does not contain the accumulated gradients
        due = self._stopping or batch_idx == 0 or (self._every and step % self._every == 0)
        if due and step > 0 and step != self._saved_at:
            self._save(trainer)
        if self._stopping:
            if step != self._stop_at and trainer.is_global_zero:
                print_line(f"train: stopped by SIGTERM after {step} steps; resume=auto continues")
            raise Terminated

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_at:
            self._save(trainer)
        self._handle_sigterm(raise_terminated)
        if self._received or trainer.global_step == self._stop_at:
            raise Terminated

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the checkpoints that a finished run does not need.

        Lightning calls this after the callbacks that follow the fit, and only if they succeed.
        """
        if not trainer.is_global_zero:
            return
        (self._dirpath / PREVIOUS).unlink(missing_ok=True)
        last, callback = self._dirpath / LAST, trainer.checkpoint_callback
        if not isinstance(callback, BestCheckpoint) or not last.is_file():
            return
        best = Path(callback.best_model_path)
        if not self._keep and best.is_file():
            last.unlink()
        elif callback.step_of_best == trainer.global_step:  # both have the same weights
            temporary = temporary_sibling(best)
            with contextlib.suppress(OSError):  # a file system without hard links
                temporary.hardlink_to(last)
                temporary.replace(best)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.flush()  # before the checkpoint, or a resumed run would lose these rows
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(self._dirpath / LAST)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = True

    def _receive(self, *_: Any) -> None:
        self._received = True

    def _handle_sigterm(self, handler: Callable[..., None]) -> None:
        if threading.current_thread() is threading.main_thread():  # required by signal.signal
            signal.signal(signal.SIGTERM, handler)

    def _is_sigterm_known(self, trainer: pl.Trainer) -> bool:
        """Return whether all ranks know that one of them has received SIGTERM.

        The ranks exchange this information while a step runs, so that no step waits for it.
        """
        if trainer.world_size == 1:
            return self._received
        if self._any_received is not None and self._any_received():
            return True
        self._any_received = start_any(self._received)
        return False


class EarlyEnd(Callback):
    """Prevents a resumed run from training on after a callback, e.g. early stopping, has ended it.

    A run that is killed after its last step, but before its export, resumes from the checkpoint of
    the last step, and would otherwise train another epoch.

    Args:
        keep: Whether the training stays ended; False for `resume=true`, which continues it.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep, self._ended = keep, False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_ENDED_EARLY] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._ended = self._keep and checkpoint.get(_ENDED_EARLY, False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = self._ended

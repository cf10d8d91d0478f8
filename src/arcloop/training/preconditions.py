"""Checks of the trainer's settings that Lightning makes late, with a traceback, or not at all.

The result of a run is the checkpoint that is best on val, so a run needs at least one validation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from arcloop.config.monitors import VAL_METRICS
from arcloop.errors import ConfigError

_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def check_trainer(
    trainer: pl.Trainer, callbacks: Mapping[str, Callback | None], images: int
) -> None:
    """Check what is known without the data.

    Args:
        trainer: The trainer of the run.
        callbacks: Name -> callback; None entries are skipped.
        images: Images in a batch, of all processes if batch norm is synchronised.

    Raises:
        ConfigError: A run with these values fails, or has no best checkpoint; the message lists
            all such values.
    """
    given = [callback for callback in callbacks.values() if callback is not None]
    faults = list(_trainer_faults(trainer, _selects_on_val(given)))
    if images < 2:
        faults.append("loader.batch_size=1: batch norm needs at least 2 images in a batch")
    if faults:
        raise ConfigError("\n".join(faults), remedy="change the values; nothing was started")


def _trainer_faults(trainer: pl.Trainer, selects_on_val: bool) -> Iterator[str]:
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    given = vars(trainer)  # its type stubs lack some of the attributes
    if trainer.precision not in _PRECISIONS:
        yield (
            f"trainer.precision={trainer.precision}: the head and batch norm compute in float32;"
            f" choose {', '.join(_PRECISIONS)}"
        )
    if given["fast_dev_run"]:
        yield (
            f"trainer.fast_dev_run={given['fast_dev_run']} saves no checkpoint; use"
            " trainer.max_epochs=1 with +trainer.limit_train_batches=1"
        )
    if given["overfit_batches"]:
        yield (
            f"trainer.overfit_batches={given['overfit_batches']} is not supported; use"
            " +trainer.limit_train_batches=N"
        )
    for key in ("limit_train_batches", "max_epochs", "max_steps"):
        if getattr(trainer, key) == 0 and not given["fast_dev_run"]:
            yield f"trainer.{key}=0 trains nothing; set 1 or more"
    if trainer.accumulate_grad_batches < 1:
        yield f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}; set 1 or more"
    if epochs == trainer.max_steps == -1:
        yield (
            "trainer.max_epochs=-1: the learning-rate schedule needs the number of steps; set"
            " trainer.max_epochs or trainer.max_steps"
        )
    if selects_on_val and trainer.limit_val_batches == 0:
        yield (
            "trainer.limit_val_batches=0: the best checkpoint is selected by a metric of val; set 1"
            " or more"
        )
    if selects_on_val and every is not None and epochs is not None and 0 < epochs < every:
        yield (
            f"trainer.check_val_every_n_epoch={every} is more than trainer.max_epochs={epochs}, so"
            " no checkpoint would be selected"
        )


def _selects_on_val(callbacks: Iterable[Callback]) -> bool:
    return any(isinstance(c, ModelCheckpoint) and c.monitor in VAL_METRICS for c in callbacks)


def check_first_validation(trainer: pl.Trainer, batches: int) -> None:
    """Check that training reaches its first validation.

    Args:
        trainer: A trainer that passed `check_trainer`.
        batches: Training batches per epoch.

    Raises:
        ConfigError: Training ends before it.
    """
    limit, interval = trainer.limit_train_batches, trainer.val_check_interval
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    every = trainer.check_val_every_n_epoch
    within = interval if isinstance(interval, int) else max(1, int(batches * interval))
    if batches < 1 or (every is not None and within > batches):
        raise ConfigError(
            f"trainer.val_check_interval={interval} is more than the {batches} training batches of"
            " an epoch",
            remedy="reduce it, or loader.batch_size",
        )
    if trainer.max_steps == -1 or not _selects_on_val(trainer.callbacks):  # type: ignore[attr-defined]
        return
    first = within if every is None else (every - 1) * batches + within
    steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    full_epochs, steps = divmod(trainer.max_steps, steps_per_epoch)
    last = full_epochs * batches + min(steps * trainer.accumulate_grad_batches, batches)
    if last < first:
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps} ends training before the first validation; an"
            f" epoch of this store has {steps_per_epoch} steps",
            remedy=f"set trainer.max_steps={(every or 1) * steps_per_epoch} or more, or validate"
            " more often with +trainer.val_check_interval=N (in batches)",
        )

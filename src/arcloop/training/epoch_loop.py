"""Lightning's loop over the batches of an epoch, without asking for hooks that nobody has.

Lightning looks every hook up again at each step, in the module, in every callback and in the
strategy, to find that nearly none is there: as much as the optimizer's step of a small network.
"""

# ruff: noqa: SLF001  # a loop of Lightning's own family, which lives on what its trainer keeps

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.trainer import call
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch import Tensor

from arcloop.training.no_profiler import NoProfiler

Batch = tuple[Tensor, Tensor]

_CALLED = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
_NOT_CALLED = (
    "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "backward",
    "on_train_batch_start", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step",
)  # fmt: skip


class EpochLoop(_TrainingEpochLoop):
    """Does at each step what Lightning's own loop does, and leaves to it whatever is unusual."""

    def __init__(self, trainer: pl.Trainer, *, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self._results: NotedResults = NotedResults(training=True)
        self._hooks: Hooks | None = None
        self._schedulers: list[Any] = []

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look once for the hooks that are there."""
        super().on_run_start(data_fetcher)
        usual = is_usual(self.trainer) and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self._hooks = Hooks(self.trainer) if usual else None
        self._schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch."""
        trainer: Any = self.trainer
        if self._hooks is None or self.restarting or trainer.accumulate_grad_batches != 1:
            super().advance(data_fetcher)
            return
        if trainer.world_size > 1:
            self._broadcast_sigterm_tensor()
        batch, _, _ = next(data_fetcher)
        index, progress = self.batch_idx + 1, self.batch_progress
        progress.is_last_batch = data_fetcher.done
        device = trainer.strategy.root_device
        if device.type != "cpu":
            batch = move_data_to_device(batch, device)
        progress.increment_ready()
        connector, results = trainer._logger_connector, self._results
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self._hooks.call("on_train_batch_start", batch, index)
        progress.increment_started()
        output = {"loss": self._step(self._hooks, batch, index)}
        progress.increment_processed()
        for scheduler in self._schedulers:
            self.scheduler_progress.increment_ready()
            scheduler.step()
            self.scheduler_progress.increment_completed()
        self._hooks.call("on_train_batch_end", output, batch, index)
        if results.take_news():
            connector.on_batch_end()
        results.batch, results.batch_size = None, None
        progress.increment_completed()
        connector.update_train_step_metrics()

    def _step(self, hooks: Hooks, batch: Batch, index: int) -> Tensor:
        """Forward, backward and the optimizer's step; the loss without its graph."""
        trainer: Any = self.trainer
        strategy, (optimizer,) = trainer.strategy, trainer.optimizers
        progress = self.automatic_optimization.optim_progress.optimizer
        zero_grad = progress.zero_grad
        losses: list[Tensor] = []

        def closure() -> Tensor:
            with torch.enable_grad():  # whatever an optimizer calls it under
                hooks.enter("training_step")
                loss = strategy.training_step(batch, index)
                losses.append(loss.detach().clone())
                zero_grad.increment_ready()
                hooks.call("on_before_zero_grad", optimizer)
                zero_grad.increment_started()
                optimizer.zero_grad()
                zero_grad.increment_completed()
                strategy.pre_backward(loss)
                hooks.call("on_before_backward", loss)
                loss.backward()
                hooks.call("on_after_backward")
                strategy.post_backward(loss.detach())
                hooks.call("on_before_optimizer_step", optimizer)
            if trainer.gradient_clip_val:
                call._call_lightning_module_hook(
                    trainer, "configure_gradient_clipping", optimizer,
                    gradient_clip_val=trainer.gradient_clip_val,
                    gradient_clip_algorithm=trainer.gradient_clip_algorithm,
                )  # fmt: skip
            return losses[0]

        progress.step.increment_ready()
        optimizer.step(closure=closure)
        progress.step.increment_completed()
        return losses[0]


class NotedResults(_ResultCollection):
    """What was logged, and whether anything was since last asked.

    Lightning brings all that was ever logged into the progress bar's form after each step; on a GPU
    it waits for the step to end for it.
    """

    def __init__(self, training: bool) -> None:
        super().__init__(training)
        self._news = False

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log a value, as Lightning does."""
        self._news = True
        super().log(*args, **kwargs)

    def take_news(self) -> bool:
        """Return whether something was logged since the last call."""
        news, self._news = self._news, False
        return news


class Hooks:
    """The hooks of a step that a callback or the module has, in Lightning's order."""

    def __init__(self, trainer: Any) -> None:
        self._module = module = trainer.lightning_module
        self._found = {
            name: [
                *(
                    (getattr(callback, name), (trainer, module))
                    for callback in trainer.callbacks
                    if is_overridden(name, callback, Callback)
                ),
                *([(getattr(module, name), ())] if is_overridden(name, module) else []),
            ]
            for name in _CALLED
        }

    def call(self, name: str, *arguments: Any) -> None:
        """Call those of this name."""
        for function, first in self._found[name]:
            self.enter(name)
            function(*first, *arguments)

    def enter(self, name: str) -> None:
        """Have what is logged from now on be logged by this hook."""
        # Not by assignment, at which torch looks each time whether it is a parameter.
        self._module.__dict__["_current_fx_name"] = name


def is_usual(trainer: Any) -> bool:
    """Whether Lightning's loop would do at each step no more than `EpochLoop` does."""
    module, strategy, precision = (
        trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    )  # fmt: skip
    return (
        isinstance(trainer.profiler, NoProfiler)
        and module.automatic_optimization
        and type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_ddp_comm_state", None) is None
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        and all(is_each_step(config) for config in trainer.lr_scheduler_configs)
        and not any(is_overridden(name, module) for name in _NOT_CALLED)
        and not any(is_overridden(name, trainer.datamodule) for name in _NOT_CALLED[:3])
    )


def is_each_step(config: LRSchedulerConfig) -> bool:
    """Whether a schedule takes a step after each of the optimizer's, whatever is measured."""
    return (config.interval, config.frequency, config.reduce_on_plateau) == ("step", 1, False)

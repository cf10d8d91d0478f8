"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from arcloop.config.value_types import checked


class ExponentialAverage(WeightAveraging):
    """Averages the weights over the optimizer steps; validation and export use the average.

    After step t + 1, average = d * average + (1 - d) * weights with d = min(decay,
    (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage. The first step (t = 0) copies
    the weights. Therefore the average of a short training spans about the last tenth of its steps,
    and does not contain the untrained weights.

    Buffers are not averaged, and have the values of the last step: the statistics of batch norm are
    already a moving average, over about ten steps.

    Args:
        decay: Upper limit of d; in a long training, the average spans about 1 / (1 - decay) steps.
    """

    @checked("callbacks.ema")
    def __init__(self, *, decay: Annotated[float, Field(ge=0, lt=1)]) -> None:
        self._decay = decay
        super().__init__(use_buffers=False, multi_avg_fn=self._update)

    def _update(self, average: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        step = int(num_averaged)
        decay = min(self._decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(average, weights, num_averaged)  # type: ignore[no-untyped-call]

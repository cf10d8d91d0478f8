"""Learning-rate schedules that are stepped once per optimizer step.

A schedule multiplies the learning rate of each parameter group by the same factor. The config sets
all arguments except `(optimizer, total_steps)`.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arcloop.config.value_types import Fraction, PositiveInt, checked


@checked("scheduler")
def one_cycle(
    optimizer: Optimizer,
    total_steps: PositiveInt,
    *,
    warmup: Fraction,
    start_factor: Fraction,
    end_factor: Fraction,
) -> LambdaLR:
    """Increase from `start_factor` to 1, then decrease to `end_factor`, each along half a cosine.

    Smith and Topin, arXiv 1708.07120, in the two-phase form of torch's OneCycleLR, with constant
    momentum.

    Args:
        optimizer: The learning rates of its groups are the peak values.
        total_steps: Optimizer steps of the whole fit.
        warmup: Share of the steps before the peak, in [0, 1].
        start_factor: First learning rate as a share of the peak, in [0, 1].
        end_factor: Last learning rate as a share of the peak, in [0, 1].
    """
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return _ease(start_factor, 1.0, step / rise)
        return _ease(1.0, end_factor, (step - rise) / max(total_steps - 1 - rise, 1))

    return LambdaLR(optimizer, factor)


@checked("scheduler")
def cosine(
    optimizer: Optimizer, total_steps: PositiveInt, *, warmup: Fraction, end_factor: Fraction
) -> LambdaLR:
    """Increase linearly from almost 0 to 1, then decrease along half a cosine to `end_factor`.

    Loshchilov and Hutter, arXiv 1608.03983, without restarts; warm-up as in arXiv 1706.02677.

    Args:
        optimizer: The learning rates of its groups are the peak values.
        total_steps: Optimizer steps of the whole fit.
        warmup: Share of the steps before the peak, in [0, 1].
        end_factor: Last learning rate as a share of the peak, in [0, 1].
    """
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return _ease(1.0, end_factor, (step - rise) / max(total_steps - 1 - rise, 1))

    return LambdaLR(optimizer, factor)


@checked("scheduler")
def constant(optimizer: Optimizer, total_steps: PositiveInt, *, warmup: Fraction) -> LambdaLR:
    """Increase linearly from almost 0 to 1, then stay constant.

    Args:
        optimizer: The learning rates of its groups are the values after the warm-up.
        total_steps: Optimizer steps of the whole fit.
        warmup: Share of the steps before the constant phase, in [0, 1].
    """
    rise = warmup * total_steps
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (rise + 1)))


def _ease(start: float, end: float, progress: float) -> float:
    """Interpolate along half a cosine from `start` at progress 0 to `end` at 1 and above."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

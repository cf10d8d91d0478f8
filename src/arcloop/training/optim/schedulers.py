"""Learning-rate schedules, stepped once per batch, each relative to every group's own rate.

A schedule is the factor by which each group's learning rate is multiplied; YAML fills in all but
`(optimizer, total_steps)`.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arcloop.config.value_types import Fraction, PositiveInt, check


def one_cycle(
    optimizer: Optimizer,
    total_steps: PositiveInt,
    *,
    warmup: Fraction,
    start_factor: Fraction,
    end_factor: Fraction,
) -> LambdaLR:
    """Half a cosine up from `start_factor`, half a cosine down to `end_factor`.

    Smith and Topin, arXiv 1708.07120, in the two-phase form of torch's OneCycleLR, with momentum
    left as it is.

    Args:
        optimizer: Its groups' learning rates are the peaks.
        total_steps: Batches of the whole fit.
        warmup: Share of the steps before the peak.
        start_factor: First learning rate, as a share of the peak.
        end_factor: Last learning rate, as a share of the peak.
    """
    _check(total_steps, warmup=warmup, start_factor=start_factor, end_factor=end_factor)
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return _ease(start_factor, 1.0, step / rise)
        return _ease(1.0, end_factor, (step - rise) / max(total_steps - 1 - rise, 1))

    return LambdaLR(optimizer, factor)


def cosine(
    optimizer: Optimizer, total_steps: PositiveInt, *, warmup: Fraction, end_factor: Fraction
) -> LambdaLR:
    """A straight line up from near 0, half a cosine down to `end_factor`.

    Loshchilov and Hutter, arXiv 1608.03983, without restarts; warm-up as in arXiv 1706.02677.

    Args:
        optimizer: Its groups' learning rates are the peaks.
        total_steps: Batches of the whole fit.
        warmup: Share of the steps before the peak.
        end_factor: Last learning rate, as a share of the peak.
    """
    _check(total_steps, warmup=warmup, end_factor=end_factor)
    rise = warmup * total_steps

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        return _ease(1.0, end_factor, (step - rise) / max(total_steps - 1 - rise, 1))

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: PositiveInt, *, warmup: Fraction) -> LambdaLR:
    """A straight line up from near 0, then every group's own learning rate.

    Args:
        optimizer: Its groups' learning rates are those after the warm-up.
        total_steps: Batches of the whole fit.
        warmup: Share of the steps that the line takes.
    """
    _check(total_steps, warmup=warmup)
    rise = warmup * total_steps
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (rise + 1)))


def _ease(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1, and level from there."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _check(total_steps: int, **factors: float) -> None:
    named = {name: (value, Fraction) for name, value in factors.items()}
    check("scheduler", total_steps=(total_steps, PositiveInt), **named)

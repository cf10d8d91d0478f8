"""The optimizer of embedder and head, and learning-rate schedules.

A schedule is stepped once per optimizer step and multiplies the learning rate of each parameter
group by the same factor. The config sets all arguments except `(optimizer, total_steps)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any

from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arcloop.config.value_types import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from arcloop.errors import ConfigError
from arcloop.training.sharded import update_sparse_rows


@checked("optimizer")
def make_optimizer(
    embedder: nn.Module,
    head: nn.Module,
    *,
    factory: Callable[[list[dict[str, Any]]], Optimizer],
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    head_lr: PositiveFloat,
    head_weight_decay: NonNegativeFloat,
    backbone_lr_factor: PositiveFloat,
    layer_decay: Annotated[float, Field(gt=0, le=1)],
) -> Optimizer:
    """Make an optimizer with separate learning rates and weight decays for embedder and head.

    With layer-wise decay (Clark et al., arXiv 2003.10555; Bao et al., arXiv 2106.08254), the n-th
    layer of the backbone, counted from the neck, has the learning rate lr · backbone_lr_factor ·
    layer_decay^n.

    A sparse gradient updates only the rows that it contains, see `update_sparse_rows`.

    Args:
        embedder: Its trainable parameters are optimized, and those of the head. It has a submodule
            `backbone`.
        head: The head.
        factory: Makes the optimizer from parameter groups, e.g. a partial of a torch.optim class.
        lr: Learning rate of the embedder.
        weight_decay: Weight decay of the embedder.
        head_lr: Learning rate of the head.
        head_weight_decay: Weight decay of the head.
        backbone_lr_factor: Learning rate of the backbone as a share of `lr`.
        layer_decay: Learning rate of a layer of the backbone as a share of that of the next layer.

    Raises:
        ConfigError: `layer_decay` is not 1 and the backbone does not define the order of its
            layers.
    """
    backbone = embedder.get_submodule("backbone")
    # A backbone may exclude further parameters from weight decay, e.g. position embeddings.
    excluded: Collection[str] = getattr(backbone, "no_weight_decay", tuple)()
    exempt = {id(p) for name, p in backbone.named_parameters() if name in excluded}
    parts = {"embedder": (lr, list(embedder.parameters()))}
    if backbone_lr_factor != 1 or layer_decay != 1:
        in_backbone = {id(p) for p in backbone.parameters()}
        neck = [p for p in embedder.parameters() if id(p) not in in_backbone]
        layers = _backbone_layers(backbone, layer_decay)
        parts = {"embedder": (lr, neck)} | {
            name: (lr * backbone_lr_factor * scale, parameters)
            for name, (scale, parameters) in layers.items()
        }
    groups = [
        group
        for name, (rate, parameters) in parts.items()
        for group in parameter_groups(
            name, parameters, lr=rate, weight_decay=weight_decay, exempt=exempt
        )
    ]
    groups += parameter_groups(
        "head", head.parameters(), lr=head_lr, weight_decay=head_weight_decay
    )
    return update_sparse_rows(factory(groups))


def _backbone_layers(
    backbone: nn.Module, decay: float
) -> dict[str, tuple[float, list[nn.Parameter]]]:
    """Return name of a layer -> (decay^n of the n-th layer from the neck, its parameters)."""
    if decay == 1:
        return {"backbone": (1.0, list(backbone.parameters()))}
    if not hasattr(backbone, "layers"):
        raise ConfigError(
            f"{type(backbone).__name__} does not define the order of its layers",
            where=f"optimizer.layer_decay={decay}",
            remedy="set optimizer.layer_decay=1.0, or choose backbone=timm",
        )
    layer_of, top = backbone.layers()  # type: ignore[operator]
    found: dict[int, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        found.setdefault(layer_of[name], []).append(parameter)
    return {f"backbone_{n:02}": (decay ** (top - n), found[n]) for n in sorted(found)}


def parameter_groups(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    exempt: Collection[int] = (),
) -> list[dict[str, Any]]:
    """Split parameters into a group with and a group without weight decay.

    Parameters with fewer than two dimensions (biases, weights of norms and PReLUs) get no weight
    decay (Goyal et al., arXiv 1706.02677, section 5.3).

    Args:
        name: Name of the first group; the second is named `name`_no_decay.
        parameters: The trainable ones of them are used.
        lr: Learning rate of both groups.
        weight_decay: Weight decay of the first group.
        exempt: `id` of further parameters without weight decay.

    Returns:
        One or two non-empty groups in the format of torch.optim.
    """
    trainable = [p for p in parameters if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in exempt]
    not_decayed = [p for p in trainable if p.ndim < 2 or id(p) in exempt]
    groups = [
        {"name": name, "params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"name": f"{name}_no_decay", "params": not_decayed, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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

    Loshchilov and Hutter, arXiv 1608.03983, without restarts; warm-up as in arXiv 1706.02677. With
    an `end_factor` of 1, the factor is constant after the warm-up.

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


def _ease(start: float, end: float, progress: float) -> float:
    """Interpolate along half a cosine from `start` at progress 0 to `end` at 1 and above."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

"""Optimizers over two groups: the embedder, and the head with its own rate and decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from arcloop.config.value_types import NonNegativeFloat, PositiveFloat, check
from arcloop.training.optim.sparse_rows import update_rows_alone


class GroupedOptimizer:
    """Makes an optimizer in which embedder and head have their own learning rate and decay.

    Args:
        factory: Makes the optimizer from parameter groups: a partial of a torch.optim class.
        lr: Learning rate of the embedder.
        weight_decay: Weight decay of the embedder.
        head_lr: Learning rate of the head.
        head_weight_decay: Weight decay of the head.
    """

    def __init__(
        self,
        *,
        factory: Callable[[list[dict[str, Any]]], Optimizer],
        lr: PositiveFloat,
        weight_decay: NonNegativeFloat,
        head_lr: PositiveFloat,
        head_weight_decay: NonNegativeFloat,
    ) -> None:
        check(
            "optimizer",
            lr=(lr, PositiveFloat),
            weight_decay=(weight_decay, NonNegativeFloat),
            head_lr=(head_lr, PositiveFloat),
            head_weight_decay=(head_weight_decay, NonNegativeFloat),
        )
        self.factory = factory
        self.lr, self.weight_decay = lr, weight_decay
        self.head_lr, self.head_weight_decay = head_lr, head_weight_decay

    def __call__(self, embedder: nn.Module, head: nn.Module) -> Optimizer:
        """Make the optimizer of both modules' trainable parameters.

        Where a gradient is sparse, it updates the rows of the gradient alone.
        """
        groups = [
            *parameter_groups("embedder", embedder, lr=self.lr, weight_decay=self.weight_decay),
            *parameter_groups("head", head, lr=self.head_lr, weight_decay=self.head_weight_decay),
        ]
        return update_rows_alone(self.factory(groups))


def parameter_groups(
    name: str, module: nn.Module, *, lr: PositiveFloat, weight_decay: NonNegativeFloat
) -> list[dict[str, Any]]:
    """Parameter groups of a module: its matrices and kernels, and what must not decay.

    Biases, and the weights of norms and PReLUs (all that has fewer than two dimensions) do not
    decay: pulling them to 0 regularises nothing (Goyal et al., arXiv 1706.02677, section 5.3).

    Args:
        name: Name of the group; the second is called `name`_no_decay.
        module: Its parameters that need a gradient are taken.
        lr: Learning rate of both groups.
        weight_decay: Weight decay of the first.

    Returns:
        One or two groups as torch.optim takes them; none is empty.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    spared = [p for p in trainable if p.ndim < 2]
    groups = [
        {"name": name, "params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"name": f"{name}_no_decay", "params": spared, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

"""Optimizers with separate learning rates and weight decays for embedder and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from arcloop.config.value_types import NonNegativeFloat, PositiveFloat, checked
from arcloop.training.optim.sharded import update_sparse_rows


class GroupedOptimizer:
    """Makes an optimizer with separate learning rates and weight decays for embedder and head.

    Args:
        factory: Makes the optimizer from parameter groups, e.g. a partial of a torch.optim class.
        lr: Learning rate of the embedder.
        weight_decay: Weight decay of the embedder.
        head_lr: Learning rate of the head.
        head_weight_decay: Weight decay of the head.
    """

    @checked("optimizer")
    def __init__(
        self,
        *,
        factory: Callable[[list[dict[str, Any]]], Optimizer],
        lr: PositiveFloat,
        weight_decay: NonNegativeFloat,
        head_lr: PositiveFloat,
        head_weight_decay: NonNegativeFloat,
    ) -> None:
        self.factory = factory
        self.lr, self.weight_decay = lr, weight_decay
        self.head_lr, self.head_weight_decay = head_lr, head_weight_decay

    def __call__(self, embedder: nn.Module, head: nn.Module) -> Optimizer:
        """Make the optimizer of the trainable parameters of both modules.

        A sparse gradient updates only the rows that it contains, see `update_sparse_rows`.
        """
        groups = [
            *parameter_groups("embedder", embedder, lr=self.lr, weight_decay=self.weight_decay),
            *parameter_groups("head", head, lr=self.head_lr, weight_decay=self.head_weight_decay),
        ]
        return update_sparse_rows(self.factory(groups))


def parameter_groups(
    name: str, module: nn.Module, *, lr: PositiveFloat, weight_decay: NonNegativeFloat
) -> list[dict[str, Any]]:
    """Split the parameters of a module into a group with and a group without weight decay.

    Parameters with fewer than two dimensions (biases, weights of norms and PReLUs) get no weight
    decay (Goyal et al., arXiv 1706.02677, section 5.3).

    Args:
        name: Name of the first group; the second is named `name`_no_decay.
        module: Its trainable parameters are used.
        lr: Learning rate of both groups.
        weight_decay: Weight decay of the first group.

    Returns:
        One or two non-empty groups in the format of torch.optim.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    not_decayed = [p for p in trainable if p.ndim < 2]
    groups = [
        {"name": name, "params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"name": f"{name}_no_decay", "params": not_decayed, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

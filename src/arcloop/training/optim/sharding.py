"""What a fit has to do for a head whose classes are spread over the processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from arcloop.distributed.collectives import gather_shards, sum_over_processes
from arcloop.models import ShardedArcFace
from arcloop.training.optim.sparse_rows import compact

HEAD_WEIGHT = "head.weight"
"""Its name within the module."""
_HEAD_GROUP = "head"


def clip_by_norm(optimizer: Optimizer, head: ShardedArcFace, limit: float) -> None:
    """Scale all gradients down so that their norm, shards of all processes included, is `limit`.

    A collective. What DDP has averaged is the same on every process and counts once.
    """
    gradients = _gradients(optimizer)
    own = [grad for parameter, grad in gradients if parameter is head.weight]
    shared = [grad for parameter, grad in gradients if parameter is not head.weight]
    square = get_total_norm(own).to(head.weight.device) ** 2
    norm = (get_total_norm(shared) ** 2 + sum_over_processes(square)).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*shared, *own):
        grad.mul_(scale)


def clip_by_value(optimizer: Optimizer, limit: float) -> None:
    """Clamp every coordinate of the gradients to [-limit, limit]."""
    for _, grad in _gradients(optimizer):
        grad.clamp_(-limit, limit)


def _gradients(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Return (parameter, gradient), of sparse gradients the values, to be changed in place."""
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = grad = compact(parameter.grad)
                found.append((parameter, grad.values() if grad.is_sparse else grad))
    return found


def hold_whole_head(checkpoint: dict[str, Any], head: ShardedArcFace) -> None:
    """Put the whole head and its whole optimizer state into rank zero's checkpoint.

    A collective. The checkpoints of other ranks, which nobody writes, keep their shard.
    """

    def whole(shard_cD: Tensor) -> Tensor:
        gathered = gather_shards(shard_cD, head.num_classes)
        return shard_cD if gathered is None else gathered

    _exchange(checkpoint, whole)


def hold_own_shard(checkpoint: dict[str, Any], head: ShardedArcFace) -> None:
    """Cut a loaded checkpoint's whole head and its optimizer state down to this process's part."""
    own = slice(head.classes.start, head.classes.stop)
    # A copy: a view would keep the whole in memory.
    _exchange(checkpoint, lambda whole_CD: whole_CD[own].clone())


def _exchange(checkpoint: dict[str, Any], exchange: Callable[[Tensor], Tensor]) -> None:
    """Exchange all that is by class, in the same order on every process."""
    weight = checkpoint["state_dict"][HEAD_WEIGHT]
    checkpoint["state_dict"][HEAD_WEIGHT] = exchange(weight)
    for optimizer in checkpoint.get("optimizer_states", ()):
        groups = (g for g in optimizer["param_groups"] if g["name"] == _HEAD_GROUP)
        for index in (i for group in groups for i in group["params"]):
            # New dicts: those of a checkpoint that is being made are the optimizer's own.
            optimizer["state"] = dict(optimizer["state"])
            optimizer["state"][index] = {
                name: exchange(value)
                if isinstance(value, Tensor) and value.shape == weight.shape
                else value
                for name, value in sorted(optimizer["state"].get(index, {}).items())
            }

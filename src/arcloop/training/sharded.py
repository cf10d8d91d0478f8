"""Gradient clipping, checkpoints and optimizer steps for a head whose classes are sharded.

With `sample_rate` below 1, the gradient of the head's weight is sparse: it contains only the rows
of the sampled classes. `update_sparse_rows` makes any torch optimizer update only these rows.
(torch.optim.SGD would decay all rows, AdamW rejects sparse gradients, and SparseAdam has no weight
decay.)

Shapes: C classes, c classes of this process, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from arcloop.distributed.collectives import gather_shards, sum_over_processes
from arcloop.models import ShardedArcFace

HEAD_WEIGHT = "head.weight"
"""Name of the head's weight in the module's state dict."""
_HEAD_GROUP = "head"

SwappedParameters = list[tuple[dict[str, Any], int, nn.Parameter, Tensor]]
"""(parameter group, position in the group, full parameter, indices of its rows with gradient)."""


def clip_gradients(
    optimizer: Optimizer, head: ShardedArcFace, limit: float, *, by_value: bool
) -> None:
    """Clip the gradients of all parameters, where the head's gradient may be sparse.

    Collective: every rank must call it. Gradients that DDP has averaged are equal on all ranks and
    are counted once.

    Args:
        optimizer: The optimizer of all parameters.
        head: The sharded head.
        limit: Largest total norm over all shards, or with `by_value` the largest absolute value.
        by_value: Clamp every coordinate instead of scaling all gradients by the same factor.
    """
    own: list[Tensor] = []  # gradient of this process's shard; if sparse, its values
    shared: list[Tensor] = []  # gradients that are equal on all ranks
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None:
            parameter.grad = grad = coalesce(parameter.grad)
            kind = own if parameter is head.weight else shared
            kind.append(grad.values() if grad.is_sparse else grad)
    square = get_total_norm(own).to(head.weight.device) ** 2
    norm = (get_total_norm(shared) ** 2 + sum_over_processes(square)).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for grad in (*shared, *own):
        if by_value:
            grad.clamp_(-limit, limit)
        else:
            grad.mul_(scale)


def gather_head_state(checkpoint: dict[str, Any], head: ShardedArcFace) -> None:
    """Replace the shards in rank zero's checkpoint by the full head and its optimizer state.

    Collective: every rank must call it. The checkpoints of the other ranks are not written and not
    changed.
    """

    def gather(shard_cD: Tensor) -> Tensor:
        full_CD = gather_shards(shard_cD, head.num_classes)
        return shard_cD if full_CD is None else full_CD

    _map_head_state(checkpoint, gather)


def shard_head_state(checkpoint: dict[str, Any], head: ShardedArcFace) -> None:
    """Reduce a loaded checkpoint's head and its optimizer state to the shard of this process."""
    own = slice(head.classes.start, head.classes.stop)
    # A copy, because a view would keep the full tensor in memory.
    _map_head_state(checkpoint, lambda full_CD: full_CD[own].clone())


def _map_head_state(checkpoint: dict[str, Any], function: Callable[[Tensor], Tensor]) -> None:
    """Apply a function to all tensors with one row per class, in the same order on all ranks."""
    weight = checkpoint["state_dict"][HEAD_WEIGHT]
    checkpoint["state_dict"][HEAD_WEIGHT] = function(weight)
    for optimizer in checkpoint.get("optimizer_states", ()):
        groups = (g for g in optimizer["param_groups"] if g["name"] == _HEAD_GROUP)
        for index in (i for group in groups for i in group["params"]):
            # Copy the dicts: while a checkpoint is saved, they belong to the optimizer.
            optimizer["state"] = dict(optimizer["state"])
            optimizer["state"][index] = {
                name: function(value) if _is_per_row(value, weight) else value
                for name, value in sorted(optimizer["state"].get(index, {}).items())
            }


def update_sparse_rows(optimizer: Optimizer) -> Optimizer:
    """Make an optimizer update only the rows of a sparse gradient.

    For the update, a parameter with a sparse gradient is swapped for a small parameter with the
    rows of the gradient and their optimizer state. All other rows keep their value: no weight
    decay, no momentum. State that is not per row, such as the number of steps, is shared.

    Args:
        optimizer: Any torch optimizer; two hooks are registered on its `step`.

    Returns:
        The same optimizer. The format of its `state_dict` does not change.
    """
    swapped: SwappedParameters = []

    def before(
        optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            swapped.extend(_swap_in_rows(optimizer))
            return None

        def closure_then_swap() -> Any:
            loss = closure()  # computes the gradients
            swapped.extend(_swap_in_rows(optimizer))
            return loss

        return args[:1], {**kwargs, "closure": closure_then_swap}

    def after(optimizer: Optimizer, *_: Any) -> None:
        _swap_back(optimizer, swapped)
        swapped.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


def coalesce(grad: Tensor) -> Tensor:
    """Return a gradient in which each row appears once; a dense gradient is returned unchanged.

    The gradient of a single backward pass has ascending rows, and is not copied.
    """
    if not grad.is_sparse or grad.is_coalesced():
        return grad
    # Autograd drops the coalesced flag (https://github.com/pytorch/pytorch/issues/105916), and the
    # public accessors require it.
    rows, values = grad._indices(), grad._values()  # noqa: SLF001
    if bool((rows.diff() > 0).all()):
        return torch.sparse_coo_tensor(
            rows, values, grad.shape, is_coalesced=True, check_invariants=False
        )
    return grad.coalesce()


def _swap_in_rows(optimizer: Optimizer) -> SwappedParameters:
    swapped = []
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            if parameter.grad is None or not parameter.grad.is_sparse:
                continue
            grad = coalesce(parameter.grad)
            rows = grad.indices()[0]
            small = nn.Parameter(parameter.detach().index_select(0, rows))
            small.grad = grad.values()
            if state := optimizer.state.get(parameter):
                optimizer.state[small] = {
                    name: value.index_select(0, rows) if _is_per_row(value, parameter) else value
                    for name, value in state.items()
                }
            group["params"][position] = small
            swapped.append((group, position, parameter, rows))
    return swapped


@torch.no_grad()
def _swap_back(optimizer: Optimizer, swapped: SwappedParameters) -> None:
    for group, position, parameter, rows in swapped:
        small = group["params"][position]
        group["params"][position] = parameter
        parameter.index_copy_(0, rows, small)
        state = optimizer.state[parameter]
        for name, value in optimizer.state.pop(small, {}).items():
            if _is_per_row(value, small):
                # The state of rows without a gradient so far is 0, as in a new optimizer.
                if name not in state:
                    state[name] = torch.zeros_like(parameter, dtype=value.dtype)
                state[name].index_copy_(0, rows, value)
            else:
                state[name] = value


def _is_per_row(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape

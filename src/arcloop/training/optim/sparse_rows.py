"""Optimizer steps that touch only the rows which have a gradient, for any optimizer of torch.

A parameter whose gradient is sparse is exchanged, for the update alone, for a small one that holds
the rows of the gradient, with their rows of the optimizer's state. All other rows stay as they
are: no decay, no momentum. (torch.optim.SGD would decay all of them, AdamW refuses sparse
gradients, and SparseAdam has neither decay nor the memory of one.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from arcloop.distributed.collectives import sparse_rows

Exchanged = list[tuple[dict[str, Any], int, nn.Parameter, Tensor]]


def update_rows_alone(optimizer: Optimizer) -> Optimizer:
    """Let an optimizer update of each sparse gradient's parameter the rows of the gradient alone.

    State that is not by row, as the number of steps, is shared by all rows.

    Args:
        optimizer: Gets two hooks around its `step`.

    Returns:
        The same optimizer. Its `state_dict` is the usual one.
    """
    exchanged: Exchanged = []

    def before(
        optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            exchanged.extend(_take_out(optimizer))
            return None
        # The gradients are there only when the closure has run, within the step.
        return args[:1], {**kwargs, "closure": _then_take_out(closure, optimizer, exchanged)}

    def after(optimizer: Optimizer, *_: Any) -> None:
        _put_back(optimizer, exchanged)
        exchanged.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


def compact(grad: Tensor) -> Tensor:
    """Make each row of a sparse gradient appear once; a dense one stays as it is.

    Rows that ascend already, as those of a single backward pass, are not copied.
    """
    if not grad.is_sparse or grad.is_coalesced():
        return grad
    rows = grad._indices()[0]  # noqa: SLF001 - the public accessors want what is found out here
    if bool((rows.diff() > 0).all()):
        return sparse_rows(rows, grad._values(), grad.shape)  # noqa: SLF001
    return grad.coalesce()


def _then_take_out(
    closure: Callable[[], Any], optimizer: Optimizer, exchanged: Exchanged
) -> Callable[[], Any]:
    def wrapped() -> Any:
        loss = closure()
        exchanged.extend(_take_out(optimizer))
        return loss

    return wrapped


def _take_out(optimizer: Optimizer) -> Exchanged:
    exchanged = []
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            if parameter.grad is None or not parameter.grad.is_sparse:
                continue
            grad = compact(parameter.grad)
            rows = grad.indices()[0]
            taken = nn.Parameter(parameter.detach().index_select(0, rows))
            taken.grad = grad.values()
            if state := optimizer.state.get(parameter):
                optimizer.state[taken] = {
                    name: value.index_select(0, rows) if _is_by_row(value, parameter) else value
                    for name, value in state.items()
                }
            group["params"][position] = taken
            exchanged.append((group, position, parameter, rows))
    return exchanged


@torch.no_grad()
def _put_back(optimizer: Optimizer, exchanged: Exchanged) -> None:
    for group, position, parameter, rows in exchanged:
        taken = group["params"][position]
        group["params"][position] = parameter
        parameter.index_copy_(0, rows, taken)
        state = optimizer.state[parameter]
        for name, value in optimizer.state.pop(taken, {}).items():
            if _is_by_row(value, taken):
                # What was never touched starts from 0, as it would in the optimizer itself.
                if name not in state:
                    state[name] = torch.zeros_like(parameter, dtype=value.dtype)
                state[name].index_copy_(0, rows, value)
            else:
                state[name] = value


def _is_by_row(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape

"""Collective operations on tensors, with gradients where a loss needs them.

gloo and NCCL both implement the operations used here. With a single process every operation
returns its input.

Each process computes the loss of its own batch, and all processes call backward together. The
minimised loss is the mean of these losses. DDP averages the gradients of replicated parameters, so
a process computes their gradients from its own loss.

Shapes: W processes, B rows of one process (the same number in all), N = W·B, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcloop.distributed.process_group import ProcessGroup, current_process_group, gloo_group


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place and without a gradient."""
    if current_process_group().world_size > 1:
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def gather_rows(own_B: Tensor) -> Tensor:
    """Concatenate the rows of all processes in order of rank, [N, ...], without a gradient."""
    world_size = current_process_group().world_size
    if world_size == 1:
        return own_B
    parts = [torch.empty_like(own_B) for _ in range(world_size)]
    dist.all_gather(parts, own_B.contiguous())
    return torch.cat(parts)


def gather_with_gradient(own_BD: Tensor, *, is_sharded: bool) -> Tensor:
    """Concatenate the features of all processes, [N, D], for a loss over the global batch.

    The gradient of a row is the sum of its gradients in all processes, and DDP divides it by W. If
    every process computes the same loss, the sum is already W times the gradient of that loss.

    Args:
        own_BD: The features of this process.
        is_sharded: The classes of the loss are sharded: each process computes the part of the
            gradient that comes through its own classes, so the sum is multiplied by W.
    """
    factor = current_process_group().world_size if is_sharded else 1
    gathered: Tensor = _Gather.apply(own_BD, factor)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """Gather rows; a rank's gradient is summed over the processes and multiplied by `factor`."""

    @staticmethod
    def forward(ctx: Any, own_BD: Tensor, factor: int) -> Tensor:
        ctx.rows, ctx.factor = len(own_BD), factor
        return gather_rows(own_BD).view(-1, own_BD.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rank = current_process_group().rank
        grad_ND = sum_over_processes(grads[0].clone())
        own_BD = grad_ND[rank * ctx.rows : (rank + 1) * ctx.rows]
        return own_BD * ctx.factor, None


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes; the gradient is the sum of all processes' gradients."""
    return gather_with_gradient(tensor[None], is_sharded=False).sum(0)


def start_any(value: bool) -> Callable[[], bool]:
    """Start a logical OR of the values of all processes, without waiting for the result.

    Returns:
        Function that waits for the result and returns it; the result is the same on all ranks.
    """
    total = torch.tensor([int(value)], device="cpu")
    work = dist.all_reduce(total, group=gloo_group(dist.group.WORLD), async_op=True)

    def wait() -> bool:
        work.wait()
        return bool(total)

    return wait


def gather_shards(shard_cD: Tensor, num_rows: int) -> Tensor | None:
    """Concatenate the shards of a matrix in the CPU memory of rank 0.

    Args:
        shard_cD: The rows `ProcessGroup.shard(num_rows)` of the matrix.
        num_rows: Number of rows of the whole matrix.

    Returns:
        The whole matrix on the CPU on rank 0, None on the other ranks.
    """
    group = current_process_group()
    own_cD = shard_cD.detach().cpu()
    if group.world_size == 1:
        return own_cD
    gloo = gloo_group(dist.group.WORLD)
    if group.rank > 0:
        dist.send(own_cD, 0, gloo)
        return None
    whole_CD = torch.empty(num_rows, *own_cD.shape[1:], dtype=own_cD.dtype, device="cpu")
    whole_CD[: len(own_cD)] = own_cD
    for rank in range(1, group.world_size):
        rows = ProcessGroup(rank, group.world_size).shard(num_rows)
        dist.recv(whole_CD[rows.start : rows.stop], rank, gloo)
    return whole_CD

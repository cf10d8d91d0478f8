"""Collective operations on tensors, with gradients where a loss needs them.

Only all_gather, all_reduce and gather are used, which gloo and NCCL both implement. With a single
process every operation returns its input.

Each process computes the loss of its own batch, and all processes call backward together. The
minimised loss is the mean of these losses. DDP averages the gradients of replicated parameters, so
a process computes their gradients from its own loss.

Shapes: W processes, B rows of one process (the same number in all), N = W·B, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arcloop.distributed.process_group import ProcessGroup, current_process_group

_GATHER_BYTES = 2**26


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place and without a gradient."""
    if current_process_group().world_size > 1:
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes; the gradient is the sum of all processes' gradients."""
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class _Sum(torch.autograd.Function):
    """Sum over the processes, in the forward and in the backward pass."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor.clone())

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_processes(grads[0].clone())


def gather_rows(own_B: Tensor) -> Tensor:
    """Concatenate the rows of all processes in order of rank, [N, ...], without a gradient."""
    world_size = current_process_group().world_size
    if world_size == 1:
        return own_B
    parts = [torch.empty_like(own_B) for _ in range(world_size)]
    dist.all_gather(parts, own_B.contiguous())
    return torch.cat(parts)


def gather_for_sharded_loss(own_BD: Tensor) -> Tensor:
    """Concatenate the features of all processes, [N, D], for a loss whose classes are sharded.

    Each process computes the part of the gradient that comes through its own classes. The sum of
    these parts is the gradient of the mean loss. It is multiplied by W, which gives the gradient of
    the process's own loss, because DDP divides by W.
    """
    gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        own_BD, current_process_group().world_size
    )
    return gathered


def gather_for_global_loss(own_BD: Tensor) -> Tensor:
    """Concatenate the features of all processes, [N, D], for a loss over the global batch.

    Every process computes the same loss, so the sum of the gradients is W times that of a single
    process. DDP divides by W, so no further factor is needed.
    """
    gathered: Tensor = _Gather.apply(own_BD, 1)  # type: ignore[no-untyped-call]
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


def gather_shards(shard_cD: Tensor, num_rows: int) -> Tensor | None:
    """Concatenate the shards of a matrix in the CPU memory of rank 0, in pieces of 64 MiB.

    Args:
        shard_cD: The rows `ProcessGroup.shard(num_rows)` of the matrix.
        num_rows: Number of rows of the whole matrix.

    Returns:
        The whole matrix on the CPU on rank 0, None on the other ranks.
    """
    group = current_process_group()
    if group.world_size == 1:
        return shard_cD.detach().cpu()
    shards = [
        ProcessGroup(rank, group.world_size).shard(num_rows) for rank in range(group.world_size)
    ]
    whole_CD = None
    if group.rank == 0:
        whole_CD = torch.empty(num_rows, *shard_cD.shape[1:], dtype=shard_cD.dtype, device="cpu")
    largest = max(len(rows) for rows in shards)
    height = max(1, _GATHER_BYTES // (shard_cD[:1].nbytes or 1))
    for first in range(0, largest, height):
        # `dist.gather` needs the same size on every rank, so shorter shards are padded.
        rows = shard_cD.detach()[first : first + height]
        piece = shard_cD.new_zeros(min(height, largest - first), *shard_cD.shape[1:])
        piece[: len(rows)] = rows
        pieces = [torch.empty_like(piece) for _ in shards] if group.rank == 0 else None
        dist.gather(piece, pieces, dst=0)
        if whole_CD is not None and pieces is not None:
            for shard, received in zip(shards, pieces, strict=True):
                target = shard[first : first + len(piece)]
                whole_CD[target.start : target.stop] = received[: len(target)]
    return whole_CD

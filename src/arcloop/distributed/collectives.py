"""Collectives of a head whose classes are spread over the processes, with their gradients.

Each process has a loss of its own batch, and all of them go backward together. What is minimised is
the mean of these losses over the processes, as under DDP: gradients of shards are those of this
mean; gradients of what DDP goes on to average are those of the process's own loss.

Only all_gather, all_reduce and gather are used: gloo and NCCL have them all. Without a process
group there is one process.

Shapes: W processes, B batch of one of them (the same in all), N = W·B, D embedding, n classes of
this process, M targets among them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_GATHERED_BYTES = 2**26


def place() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) when not distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def part(total: int, rank: int, world: int) -> range:
    """Return which of `total` rows a rank has: contiguous, and no two ranks differ by two.

    >>> [part(7, rank, 3) for rank in range(3)]
    [range(0, 2), range(2, 4), range(4, 7)]
    """
    return range(total * rank // world, total * (rank + 1) // world)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum over the processes, in place and without a gradient."""
    if place()[1] > 1:
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def gather_rows(own_B: Tensor) -> Tensor:
    """Stack the rows of all processes, [W·B, ...], in the order of ranks; without a gradient."""
    world = place()[1]
    if world == 1:
        return own_B
    parts = [torch.empty_like(own_B) for _ in range(world)]
    dist.all_gather(parts, own_B.contiguous())
    return torch.cat(parts)


def gather_features(own_BD: Tensor) -> Tensor:
    """Stack the features of all processes, [N, D]; each gets the gradient of its own loss back.

    Every process has the part of that gradient which comes through its own classes: their sum is of
    the mean of the losses, and W times as much is of the own one, of which DDP takes the mean.
    """
    gathered: Tensor = _Gather.apply(own_BD, place()[1])  # type: ignore[no-untyped-call]
    return gathered


def gather_batch(own_BD: Tensor) -> Tensor:
    """Stack the features of all processes, [N, D], where each takes a loss of all of them.

    The gradient that comes back is that of the mean of these losses over the processes, times W as
    DDP will take the mean: of one and the same loss, what a single process would have got. Each
    loss counts 1/W, and W of them are summed up: what is left is a factor of 1.
    """
    gathered: Tensor = _Gather.apply(own_BD, 1)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_BD: Tensor, factor: int) -> Tensor:
        ctx.rows, ctx.factor = len(own_BD), factor
        return gather_rows(own_BD).view(-1, own_BD.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rank = place()[0]
        grad_ND = sum_over_processes(grads[0].clone())
        own_BD = grad_ND[rank * ctx.rows : (rank + 1) * ctx.rows]
        return own_BD * ctx.factor, None


def sharded_cross_entropy(logits_Nn: Tensor, row_M: Tensor, column_M: Tensor) -> Tensor:
    """Cross-entropy of all rows over the classes of all processes.

    Args:
        logits_Nn: Logits of the classes of this process; overwritten.
        row_M: Rows whose target class is of this process.
        column_M: Columns of these targets.

    Returns:
        Loss of each row, [N], the same on every process. It is infinite if no process has the
        row's target.
    """
    loss_N: Tensor = _ShardedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_Nn, row_M, column_M
    )
    return loss_N


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_Nn: Tensor, row_M: Tensor, column_M: Tensor) -> Tensor:
        found_2N = logits_Nn.new_full((2, len(logits_Nn)), -torch.inf)
        top_N, target_N = found_2N[0], found_2N[1]
        if logits_Nn.shape[1] > 0:
            top_N.copy_(logits_Nn.amax(dim=1))
        target_N[row_M] = logits_Nn[row_M, column_M]
        if place()[1] > 1:
            dist.all_reduce(found_2N, dist.ReduceOp.MAX)
        exp_Nn = logits_Nn.sub_(top_N[:, None]).exp_()
        sum_N = sum_over_processes(exp_Nn.sum(dim=1))
        ctx.save_for_backward(exp_Nn, sum_N, row_M, column_M)
        return sum_N.log() + (top_N - target_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        exp_Nn, sum_N, row_M, column_M = ctx.saved_tensors
        # A process's loss is of its own rows: the gradients of all make that of the mean.
        grad_N = sum_over_processes(grads[0].clone()) / place()[1]
        grad_Nn = exp_Nn * (grad_N / sum_N)[:, None]
        grad_Nn[row_M, column_M] -= grad_N[row_M]
        return grad_Nn, None, None


def take_rows(weight_CD: Tensor, row_n: Tensor) -> Tensor:
    """Take rows of a matrix, [n, D]; its gradient is sparse and holds these rows alone.

    Args:
        weight_CD: The matrix.
        row_n: Ascending, each once.
    """
    taken_nD: Tensor = _TakeRows.apply(weight_CD, row_n)  # type: ignore[no-untyped-call]
    return taken_nD


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_CD: Tensor, row_n: Tensor) -> Tensor:
        ctx.save_for_backward(row_n)
        ctx.shape = weight_CD.shape
        return weight_CD.index_select(0, row_n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (row_n,) = ctx.saved_tensors
        return sparse_rows(row_n, grads[0], ctx.shape), None


def sparse_rows(row_n: Tensor, values_nD: Tensor, shape: torch.Size) -> Tensor:
    """Make a sparse matrix of some rows, which ascend, without a copy."""
    return torch.sparse_coo_tensor(
        row_n[None], values_nD, shape, is_coalesced=True, check_invariants=False
    )


def gather_shards(shard_cD: Tensor, total: int) -> Tensor | None:
    """Put the shards of a matrix together on rank zero's host, some megabytes at a time.

    Args:
        shard_cD: This process's `part` of the rows.
        total: Rows of the whole matrix.

    Returns:
        The whole matrix on the CPU on rank zero, None on the others.
    """
    rank, world = place()
    if world == 1:
        return shard_cD.detach().cpu()
    parts = [part(total, r, world) for r in range(world)]
    whole_CD = None
    if rank == 0:
        whole_CD = torch.empty(total, *shard_cD.shape[1:], dtype=shard_cD.dtype, device="cpu")
    largest = max(len(rows) for rows in parts)
    height = max(1, _GATHERED_BYTES // (shard_cD[:1].nbytes or 1))
    for first in range(0, largest, height):
        # All send as many rows as the largest part has: gather knows only equal sizes.
        rows = shard_cD.detach()[first : first + height]
        piece = shard_cD.new_zeros(min(height, largest - first), *shard_cD.shape[1:])
        piece[: len(rows)] = rows
        pieces = [torch.empty_like(piece) for _ in parts] if rank == 0 else None
        dist.gather(piece, pieces, dst=0)
        if whole_CD is not None and pieces is not None:
            for own, received in zip(parts, pieces, strict=True):
                to = own[first : first + len(piece)]
                whole_CD[to.start : to.stop] = received[: len(to)]
    return whole_CD

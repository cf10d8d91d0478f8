"""ArcFace whose classes are sharded over the processes, and optionally sampled in each step.

An et al., Partial FC: Training 10 Million Identities on a Single Machine, arXiv 2010.05222, and
Killing Two Birds with One Stone, arXiv 2203.15565.

Shapes: W processes, B batch of one process, N = W·B, D embedding, C classes, c classes of this
process, n of these in the sample of a step, M rows whose target class is in this process.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from arcloop.config.value_types import PositiveFraction, checked
from arcloop.distributed.collectives import (
    gather_rows,
    gather_with_gradient,
    sum_over_processes,
)
from arcloop.distributed.process_group import current_process_group
from arcloop.models.heads.arcface import ArcFace
from arcloop.models.heads.cosine_classifier import change_targets, scaled_cosine, to_float32

_BLOCK_ROWS = 2**12


class ShardedArcFace(ArcFace):
    """ArcFace in which each process stores and updates a contiguous part of the classes.

    Each process gathers the features and labels of all processes and computes the logits of its own
    classes; reductions combine them into one softmax. All processes call `forward` together, and
    each returns the mean loss of its own batch. With `sample_rate=1`, loss and gradients are
    those of `ArcFace` under DDP, if all batches have the same size. With a lower rate the softmax
    of a step contains a sample of the classes: the classes of the batch, and random other ones. The
    gradient of `weight` is then sparse, see `arcloop.training.sharded`.

    `initialize_shard` creates `weight`, because the number of processes is not known earlier.
    For any number of processes, the rows have the values that `ArcFace` would draw in place of this
    head. No process stores all of them.

    The sample is a function of (seed, step, number of processes), see `set_step`.

    Args:
        sample_rate: Fraction of the classes in a step, in (0, 1]; more if the batch contains more.
        **shared: margin, easy_margin, embedding_dim, num_classes and scale, see `ArcFace`.

    Attributes:
        num_classes: C, number of classes of all processes.
        classes: The classes of this process.
    """

    @checked("head")
    def __init__(self, *, sample_rate: PositiveFraction, **shared: Any) -> None:
        super().__init__(**shared)
        self.classes = range(0)
        self.sample_rate = float(sample_rate)
        self._sample_key = (0, 0)

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Save the state of torch's global generator for `initialize_shard`."""
        self.num_classes, self._embedding_dim = num_classes, embedding_dim
        self._generator_state = torch.get_rng_state()
        # The type stub of UninitializedParameter does not declare that it is a Parameter.
        return cast("nn.Parameter", UninitializedParameter())

    def initialize_shard(self) -> None:
        """Draw the class vectors of this process, after the process group has been set up.

        A second call does nothing.
        """
        if isinstance(self.weight, UninitializedParameter):
            self.classes = current_process_group().shard(self.num_classes)
            generator = torch.Generator().set_state(self._generator_state)
            drawn_cD = randn_rows(generator, self.classes, self.num_classes, self._embedding_dim)
            self.weight = nn.Parameter(drawn_cD.div_(self._embedding_dim**0.5))

    def set_step(self, seed: int, step: int) -> None:
        """Set the step that determines the sample of classes in the following forward passes.

        Args:
            seed: Seed of the run.
            step: Number of completed optimizer steps.
        """
        self._sample_key = (seed, step)

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        features_ND = gather_with_gradient(to_float32(features_BD), is_sharded=True)
        row_M, class_M = self._targets(gather_rows(labels_B))
        if self.training and self.sample_rate < 1:
            sampled_n = self._sample(class_M)
            weight_nD = F.embedding(sampled_n, self.weight, sparse=True)
            column_M = torch.searchsorted(sampled_n, class_M)
        else:
            weight_nD, column_M = self.weight, class_M
        logits_Nn = scaled_cosine(features_ND, weight_nD, self.scale)
        if self.training:
            label_M = class_M + self.classes.start
            change_targets(
                logits_Nn, self.scale, column_M, lambda c: self.with_margin(c, label_M), row_M
            )
        loss_N: Tensor = _ShardedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            logits_Nn, row_M, column_M
        )
        return loss_N.view(-1, len(labels_B))[current_process_group().rank].mean()

    def _targets(self, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows whose class belongs to this process, and the columns of these classes."""
        class_N = labels_N - self.classes.start
        row_M = ((class_N >= 0) & (class_N < len(self.classes))).nonzero()[:, 0]
        return row_M, class_N[row_M]

    def _sample(self, class_M: Tensor) -> Tensor:
        """Return the sampled classes of this process: the targets, and random other classes."""
        device, total = self.weight.device, len(self.classes)
        entropy = [*self._sample_key, self.classes.start]
        (seed,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(seed >> 1))
        score_c = torch.rand(total, generator=generator, device=device)
        score_c[class_M] = 2.0
        targets = int((score_c > 1).sum())
        wanted = max(round(self.sample_rate * total), targets, min(total, 1))
        return score_c.topk(wanted).indices.sort().values


def randn_rows(generator: torch.Generator, rows: range, total: int, width: int) -> Tensor:
    """Return some rows of `torch.randn(total, width, generator=generator)`.

    All numbers are drawn, in blocks of rows, and those of other rows are discarded.

    Args:
        generator: A CPU generator; its state advances.
        rows: The rows to return.
        total: Number of rows of the whole matrix.
        width: Number of columns.

    Returns:
        float32 [len(rows), width].

    >>> whole = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    >>> own = randn_rows(torch.Generator().manual_seed(1), range(2, 4), 5, 4)
    >>> torch.equal(own, whole[2:4])
    True
    """
    own_cD = torch.empty(len(rows), width, dtype=torch.float32, device="cpu")
    # randn generates groups of 16 numbers. Blocks equal slices of the whole, because they end at
    # multiples of 16, and the last block contains the remainder.
    starts = range(0, total, _BLOCK_ROWS)[: max(1, total // _BLOCK_ROWS)]
    for first, stop in pairwise([*starts, total]):
        piece = torch.randn(
            stop - first, width, generator=generator, dtype=own_cD.dtype, device="cpu"
        )
        low, high = max(first, rows.start), min(stop, rows.stop)
        if low < high:
            own_cD[low - rows.start : high - rows.start] = piece[low - first : high - first]
    return own_cD


class _ShardedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of all rows, [N], over the classes of all processes; equal on all processes.

    The maximum, the sum and the gradient are all-reduced. The memory of the logits is overwritten.
    The loss of a row is infinite if no process has its target class.
    """

    @staticmethod
    def forward(ctx: Any, logits_Nn: Tensor, row_M: Tensor, column_M: Tensor) -> Tensor:
        found_2N = logits_Nn.new_full((2, len(logits_Nn)), -torch.inf)
        top_N, target_N = found_2N[0], found_2N[1]
        if logits_Nn.shape[1] > 0:
            top_N.copy_(logits_Nn.amax(dim=1))
        target_N[row_M] = logits_Nn[row_M, column_M]
        if current_process_group().world_size > 1:
            dist.all_reduce(found_2N, dist.ReduceOp.MAX)
        exp_Nn = logits_Nn.sub_(top_N[:, None]).exp_()
        sum_N = sum_over_processes(exp_Nn.sum(dim=1))
        ctx.save_for_backward(exp_Nn, sum_N, row_M, column_M)
        return sum_N.log() + (top_N - target_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        exp_Nn, sum_N, row_M, column_M = ctx.saved_tensors
        # Each process has a gradient only for its own rows. The gradient of the mean loss is the
        # sum over the processes, divided by W.
        grad_N = sum_over_processes(grads[0].clone()) / current_process_group().world_size
        grad_Nn = exp_Nn * (grad_N / sum_N)[:, None]
        grad_Nn[row_M, column_M] -= grad_N[row_M]
        return grad_Nn, None, None

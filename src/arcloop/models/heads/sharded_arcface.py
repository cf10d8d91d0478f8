"""ArcFace whose classes are spread over the processes, and of which each step may take a sample.

An et al., Partial FC: Training 10 Million Identities on a Single Machine, arXiv 2010.05222, and
Killing Two Birds with One Stone, arXiv 2203.15565.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from arcloop.config.value_types import Angle, PositiveFloat, PositiveFraction, PositiveInt, checked
from arcloop.distributed.collectives import (
    gather_for_sharded_loss,
    gather_rows,
    sum_over_processes,
)
from arcloop.distributed.process_group import current_process_group
from arcloop.models.heads.arcface import ArcFace
from arcloop.models.heads.cosine_classifier import scaled_cosine, widened

_BLOCK = 2**20


class ShardedArcFace(ArcFace):
    """ArcFace of which each process holds and updates a contiguous part of the classes.

    Features and labels of all processes are gathered, each process multiplies them with its own
    class vectors, and the softmax is put together by reductions. With `sample_rate=1` loss and
    gradients are those of `ArcFace` under DDP, if all batches have the same size. Below 1 the
    softmax of a step runs over a sample of the classes alone: those of the batch, filled up at
    random; the gradient of `weight` is then sparse, see `arcloop.training.optim.sharded`.

    There is no `weight` before `split` is called, for only then is it known how many processes
    there are. The vectors drawn then are those that `ArcFace` would have drawn in this one's
    place, whatever the number of processes; no process ever holds them all.

    Which classes are sampled is a function of (seed, step, number of processes), set by `at_step`.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C, of all processes together.
        scale: s, the radius of the hypersphere.
        margin: m, additive angle in radians.
        easy_margin: Leave targets beyond a right angle as they are, see `cos_with_margin`.
        sample_rate: Share of the classes that a step takes, in (0, 1]. More, if the batch has
            more.

    Attributes:
        num_classes: C.
        classes: Which of them this process holds.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: Angle,
        easy_margin: bool,
        sample_rate: PositiveFraction,
    ) -> None:
        super().__init__(
            embedding_dim=embedding_dim,
            num_classes=num_classes,
            scale=scale,
            margin=margin,
            easy_margin=easy_margin,
        )
        self.num_classes, self._embedding_dim = num_classes, embedding_dim
        self.classes = range(0)
        self.sample_rate = float(sample_rate)
        self._sample_key = (0, 0)

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Note the state of torch's generator, for `split` to draw from."""
        self._generator_state = torch.get_rng_state()
        weight: Any = UninitializedParameter()  # a Parameter, though its stub hides it
        return cast("nn.Parameter", weight)

    def split(self) -> None:
        """Draw the class vectors of this process, once the process group is there.

        Called again, it does nothing.
        """
        if isinstance(self.weight, UninitializedParameter):
            self.classes = current_process_group().shard(self.num_classes)
            generator = torch.Generator().set_state(self._generator_state)
            drawn_cD = drawn_rows(generator, self.classes, self.num_classes, self._embedding_dim)
            self.weight = nn.Parameter(drawn_cD.div_(self._embedding_dim**0.5))

    def at_step(self, seed: int, step: int) -> None:
        """Choose the sample of the forward passes that follow.

        Args:
            seed: Of the run.
            step: Optimizer steps done.
        """
        self._sample_key = (seed, step)

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Mean cross-entropy of this process's batch: with margin in training mode, else without.

        To be called on all processes at once, with batches of one size.

        Args:
            features_BD: Embeddings before normalisation, any floating type.
            labels_B: int64, in [0, C).

        Returns:
            Scalar, float32 (float64 if the features are).
        """
        features_ND = gather_for_sharded_loss(widened(features_BD))
        row_M, class_M = self._targets(gather_rows(labels_B))
        if self.training and self.sample_rate < 1:
            sampled_n = self._sample(class_M)
            weight_nD = take_rows(self.weight, sampled_n)
            column_M = torch.searchsorted(sampled_n, class_M)
        else:
            weight_nD, column_M = self.weight, class_M
        logits_Nn = scaled_cosine(features_ND, weight_nD, self.scale)
        if self.training:
            self.add_margin(logits_Nn, row_M, column_M)
        loss_N = sharded_cross_entropy(logits_Nn, row_M, column_M)
        return loss_N.view(-1, len(labels_B))[current_process_group().rank].mean()

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with the margin of the classes of this process, [B, c]."""
        logits_Bc = self.scaled_cosine(features_BD)
        self.add_margin(logits_Bc, *self._targets(labels_B))
        return logits_Bc

    def _targets(self, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows whose class is of this process, and its number here."""
        class_N = labels_N - self.classes.start
        row_M = ((class_N >= 0) & (class_N < len(self.classes))).nonzero()[:, 0]
        return row_M, class_N[row_M]

    def _sample(self, class_M: Tensor) -> Tensor:
        """Choose which classes of this process take part: the targets, and others at random."""
        device, total = self.weight.device, len(self.classes)
        entropy = [*self._sample_key, self.classes.start]
        (seed,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(seed >> 1))
        score_c = torch.rand(total, generator=generator, device=device)
        score_c[class_M] = 2.0
        targets = int((score_c > 1).sum())
        wanted = max(round(self.sample_rate * total), targets, min(total, 1))
        return score_c.topk(wanted).indices.sort().values


def drawn_rows(generator: torch.Generator, rows: range, total: int, width: int) -> Tensor:
    """Return some rows of `torch.randn(total, width, generator=generator)`.

    The numbers before them are drawn and dropped, a few megabytes at a time.

    Args:
        generator: Of the CPU; moved on.
        rows: Which rows.
        total: Rows of the whole matrix.
        width: Its columns.

    >>> whole = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    >>> own = drawn_rows(torch.Generator().manual_seed(1), range(2, 4), 5, 4)
    >>> torch.equal(own, whole[2:4])
    True
    """
    first, stop = rows.start * width, rows.stop * width
    own = torch.empty(stop - first, dtype=torch.float32, device="cpu")
    done = 0
    while done < stop:
        left = total * width - done
        # randn draws in groups of 16, the last of which it draws again if it is not full: cut at
        # whole groups, and let the last piece be no small one, its pieces are those of the whole.
        count = left if left < 2 * _BLOCK else _BLOCK
        piece = torch.randn(count, generator=generator, dtype=torch.float32, device="cpu")
        low, high = max(first, done), min(stop, done + count)
        if low < high:
            own[low - first : high - first] = piece[low - done : high - done]
        done += count
    return own.view(len(rows), width)


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
        if current_process_group().world_size > 1:
            dist.all_reduce(found_2N, dist.ReduceOp.MAX)
        exp_Nn = logits_Nn.sub_(top_N[:, None]).exp_()
        sum_N = sum_over_processes(exp_Nn.sum(dim=1))
        ctx.save_for_backward(exp_Nn, sum_N, row_M, column_M)
        return sum_N.log() + (top_N - target_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        exp_Nn, sum_N, row_M, column_M = ctx.saved_tensors
        # A process's loss is of its own rows: the gradients of all make that of the mean.
        grad_N = sum_over_processes(grads[0].clone()) / current_process_group().world_size
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

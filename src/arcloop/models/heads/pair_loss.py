"""Losses over the pairs and triplets of a batch, from pytorch-metric-learning.

Wang et al., Cross-Batch Memory for Embedding Learning (XBM), CVPR 2020, arXiv 1912.06798.

Shapes: B batch of one process, N global batch, D embedding, C classes, M memory, R references.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arcloop.config.value_types import NonNegativeInt, PositiveInt, checked
from arcloop.distributed.collectives import gather_rows, gather_with_gradient
from arcloop.errors import ConfigError
from arcloop.models.heads.cosine_classifier import Head, to_float32


class PairLoss(Head):
    """A loss of pytorch-metric-learning, and a miner that selects its pairs or triplets.

    Both receive the global batch: the features of all processes are gathered. The minimised
    loss is the mean over the processes; their losses differ only if a miner selects at random.

    All processes call it with batches of the same size. The features are not normalised; the
    `distance` of the loss does that. The loss in evaluation mode is the same as in training mode
    without a memory.

    With a memory (XBM), the images of the batch are also compared with the features of earlier
    batches: the M newest rows of earlier global batches, as they were computed, without a gradient.
    The memory is empty at the start, and is part of the checkpoints. An image is not compared with
    itself. Time and memory of a step grow with N x M.

    Args:
        embedding_dim: D, number of features.
        num_classes: C.
        loss: Maps (features [N, D], labels [N], output of the miner) to a scalar. A partial is
            first called with `num_classes` and `embedding_size` if it accepts them; losses with
            class proxies need them.
        miner: Maps (features, labels) to pairs or triplets; None selects all in the batch. With a
            memory, loss and miner also take the features [R, D] and labels [R] of the references,
            which are the batch and then the memory.
        memory_size: M; 0 is no memory.

    Attributes:
        memory: Features [M, D] of earlier batches, the newest last, a buffer.
        memory_labels: Their labels [M]; -1 for rows that have not been filled yet.

    Raises:
        ConfigError: The loss has parameters that the seed does not determine, has buffers, or
            cannot be combined with a memory.
    """

    memory: Tensor
    memory_labels: Tensor

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        loss: Callable[..., Any],
        miner: Callable[..., Any] | None,
        memory_size: NonNegativeInt,
    ) -> None:
        super().__init__()
        if isinstance(loss, functools.partial):
            sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
            taken = inspect.signature(loss).parameters
            loss = loss(**{name: size for name, size in sizes.items() if name in taken})
        elif isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise ConfigError(
                f"{type(loss).__name__} has parameters that `seed` would not determine",
                where="head.loss",
                remedy="add _partial_: true, and remove num_classes and embedding_size",
            )
        if isinstance(loss, nn.Module) and any(True for _ in loss.buffers()):
            raise ConfigError(
                f"{type(loss).__name__} has buffers that a checkpoint would not contain completely",
                where="head.loss",
                remedy="choose a loss that depends only on the batch; head=cross_batch_memory adds"
                " a memory",
            )
        self.loss, self.miner, self.memory_size = loss, miner, memory_size
        self.num_classes = num_classes
        if memory_size:
            _require_references(loss, embedding_dim)
            self.register_buffer("memory", torch.zeros(memory_size, embedding_dim))
            self.register_buffer("memory_labels", torch.full((memory_size,), -1))

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        with torch.autocast(features_BD.device.type, enabled=False):
            features_ND = gather_with_gradient(to_float32(features_BD), is_sharded=False)
            labels_N = gather_rows(labels_B)
            references: tuple[Tensor, ...] = ()
            if self.memory_size and self.training:
                references = self._references(features_ND, labels_N)
                self._remember(features_ND.detach(), labels_N)
            found: Any = None
            if self.miner is not None:
                found = self.miner(features_ND, labels_N, *references)
            elif references:
                found = _all_pairs(labels_N, references[1])
            if references:
                found = _without_self(found)
            loss: Tensor = self.loss(features_ND, labels_N, found, *references)
            return loss

    def class_vectors(self) -> Tensor | None:
        """Return the proxies of the loss, [C, D]; None if it does not have one per class."""
        proxies = getattr(self.loss, "proxies", None)
        is_one_each = isinstance(proxies, Tensor) and len(proxies) == self.num_classes
        return proxies if is_one_each else None

    def _references(self, features_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [R, D] and labels [R] of the batch and of the filled rows of memory."""
        is_filled_M = self.memory_labels >= 0
        earlier = self.memory[is_filled_M].to(features_ND), self.memory_labels[is_filled_M]
        return torch.cat([features_ND, earlier[0]]), torch.cat([labels_N, earlier[1]])

    def _remember(self, features_ND: Tensor, labels_N: Tensor) -> None:
        """Append the batch to the memory, and remove the oldest rows."""
        for memory, rows in ((self.memory, features_ND), (self.memory_labels, labels_N)):
            memory.copy_(torch.cat([memory, rows.to(memory)])[-self.memory_size :])


def _require_references(loss: Callable[..., Any], dim: int) -> None:
    """Check that a loss takes references; those of pytorch-metric-learning raise an error."""
    features_4D, labels_4 = torch.ones(4, dim), torch.tensor([0, 0, 1, 1])
    try:
        loss(features_4D, labels_4, None, features_4D.clone(), labels_4.clone())
    except (TypeError, ValueError) as cause:
        raise ConfigError(
            f"{type(loss).__name__} cannot compare a batch with a memory: {cause}",
            where="head.memory_size",
            remedy="choose a loss over pairs or triplets, such as ContrastiveLoss, or set it to 0",
        ) from None


def _all_pairs(labels_N: Tensor, labels_R: Tensor) -> tuple[Tensor, ...]:
    """Return (anchor, positive, anchor, negative): the indices of all pairs of batch and memory."""
    is_same_NR = labels_N[:, None] == labels_R
    return *is_same_NR.nonzero(as_tuple=True), *(~is_same_NR).nonzero(as_tuple=True)


def _without_self(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Remove the pairs or triplets in which an image of the batch is its own positive."""
    keep = found[0] != found[1]  # the first N references are the batch
    positives = 2 if len(found) == 4 else 3  # (anchor, positive, anchor, negative), or triplets
    return *(indices[keep] for indices in found[:positives]), *found[positives:]

"""Losses over pairs and triplets of a batch, as pytorch-metric-learning has them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.distributed.collectives import gather_for_global_loss, gather_rows
from arcloop.errors import ConfigError
from arcloop.models.heads.cosine_classifier import widened
from arcloop.models.heads.head import Head


class PairLoss(Head):
    """A loss, and a miner that chooses what it takes, from pytorch-metric-learning.

    Both see the global batch: the features of all processes are gathered. What is minimised is the
    mean of the processes' losses, which differ only where a miner draws at random.

    There is no margin to take away: in evaluation mode it is the same loss.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        loss: Takes (features [N, D], labels [N], what the miner found) and returns a scalar. A
            partial is called first, with `num_classes` and `embedding_size` if it takes them: for
            losses that learn proxies of the classes.
        miner: Takes (features, labels) and returns pairs or triplets; None: all of the batch.

    Raises:
        ConfigError: The loss refuses its values, or keeps what a resumed run could not get back.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        loss: Callable[..., Any],
        miner: Callable[..., Any] | None,
    ) -> None:
        super().__init__()
        if isinstance(loss, functools.partial):
            sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
            taken = inspect.signature(loss).parameters
            loss = loss(**{name: size for name, size in sizes.items() if name in taken})
        elif isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise ConfigError(
                f"{type(loss).__name__} learns weights of its own, which `seed` would not decide",
                where="head.loss",
                remedy="give it _partial_: true, and leave num_classes and embedding_size out",
            )
        if isinstance(loss, nn.Module) and any(True for _ in loss.buffers()):
            raise ConfigError(
                f"{type(loss).__name__} has a memory, of which a checkpoint would hold only a part",
                where="head.loss",
                remedy="choose a loss of the batch alone",
            )
        self.loss, self.miner = loss, miner

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Loss of the global batch. To be called on all processes, with batches of one size.

        Args:
            features_BD: Embeddings before normalisation, any floating type; how they are
                normalised is up to the loss's `distance`.
            labels_B: int64, in [0, C).

        Returns:
            Scalar, float32 (float64 if the features are).
        """
        with torch.autocast(features_BD.device.type, enabled=False):
            features_ND = gather_for_global_loss(widened(features_BD))
            labels_N = gather_rows(labels_B)
            found = None if self.miner is None else self.miner(features_ND, labels_N)
            loss: Tensor = self.loss(features_ND, labels_N, found)
            return loss

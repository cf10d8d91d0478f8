"""Losses over the pairs and triplets of a batch, from pytorch-metric-learning."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.distributed.collectives import gather_rows, gather_with_gradient
from arcloop.errors import ConfigError
from arcloop.models.heads.cosine_classifier import Head, to_float32


class PairLoss(Head):
    """A loss of pytorch-metric-learning, and a miner that selects its pairs or triplets.

    Both receive the global batch: the features of all processes are gathered. The minimised
    loss is the mean over the processes; their losses differ only if a miner selects at random.

    All processes call it with batches of the same size. The features are not normalised; the
    `distance` of the loss does that. The loss in evaluation mode is the same as in training mode.

    Args:
        embedding_dim: D, number of features.
        num_classes: C.
        loss: Maps (features [N, D], labels [N], output of the miner) to a scalar. A partial is
            first called with `num_classes` and `embedding_size` if it accepts them; losses with
            class proxies need them.
        miner: Maps (features, labels) to pairs or triplets; None selects all in the batch.

    Raises:
        ConfigError: The loss has parameters that the seed does not determine, or has buffers.
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
                f"{type(loss).__name__} has parameters that `seed` would not determine",
                where="head.loss",
                remedy="add _partial_: true, and remove num_classes and embedding_size",
            )
        if isinstance(loss, nn.Module) and any(True for _ in loss.buffers()):
            raise ConfigError(
                f"{type(loss).__name__} has buffers that a checkpoint would not contain completely",
                where="head.loss",
                remedy="choose a loss that depends only on the batch",
            )
        self.loss, self.miner = loss, miner

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        with torch.autocast(features_BD.device.type, enabled=False):
            features_ND = gather_with_gradient(to_float32(features_BD), is_sharded=False)
            labels_N = gather_rows(labels_B)
            found = None if self.miner is None else self.miner(features_ND, labels_N)
            loss: Tensor = self.loss(features_ND, labels_N, found)
            return loss

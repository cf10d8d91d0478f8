"""The interface of every head: features and labels in, one loss out.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Head(nn.Module, ABC):
    """The loss that shapes the embedding, with what it learns itself; thrown away after training.

    A head is made for every training anew, from `embedding_dim`, `num_classes` and its config. It
    computes in float32 whatever the precision around it (float64 if the features are). What it
    remembers from batch to batch is of the global batch, the same on every process, and in buffers,
    so that checkpoints hold it.

    Attributes:
        warms: What `warm` can change: "margin", "scale", both or neither.
    """

    warms: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Mean loss of a batch: with margin in training mode, without in evaluation mode.

        Args:
            features_BD: Embeddings before normalisation, any floating type.
            labels_B: int64, in [0, number of classes).

        Returns:
            Scalar, float32 (float64 if the features are).
        """

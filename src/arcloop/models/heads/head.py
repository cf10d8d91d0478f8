"""The interface of every head: features and labels in, one loss out.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.quantities import PositiveFloat, PositiveInt, check


class Head(nn.Module, ABC):
    """A classifier by cosine: the loss that shapes the embedding, thrown away after training.

    It computes in float32 whatever the precision around it (float64 if the features are): at a
    scale of 64 a bfloat16 cosine would be off by a quarter in the logit.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: What cosines are multiplied by to become logits.
    """

    def __init__(
        self, *, embedding_dim: PositiveInt, num_classes: PositiveInt, scale: PositiveFloat
    ) -> None:
        check(
            "head",
            embedding_dim=(embedding_dim, PositiveInt),
            num_classes=(num_classes, PositiveInt),
            scale=(scale, PositiveFloat),
        )
        super().__init__()
        self.scale = float(scale)
        self.weight = self.make_weight(num_classes, embedding_dim)

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Draw the class vectors, [C, D], from torch's global generator."""
        # Only the direction counts: a length near 1 makes a learning rate mean the same at any D.
        return nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Mean cross-entropy: with margin in training mode, without in evaluation mode.

        Args:
            features_BD: Embeddings before normalisation, any floating type.
            labels_B: int64, in [0, C).

        Returns:
            Scalar, float32 (float64 if the features are).
        """
        if self.training:
            return F.cross_entropy(self.logits(features_BD, labels_B), labels_B)
        return F.cross_entropy(self.scaled_cosine(features_BD), labels_B)

    @abstractmethod
    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with the margin, [B, C]."""

    def cosine(self, features_BD: Tensor) -> Tensor:
        """Cosine of every feature with every class, [B, C], in [-1, 1], without margin."""
        return (self.scaled_cosine(features_BD) / self.scale).clamp(-1, 1)

    def scaled_cosine(self, features_BD: Tensor) -> Tensor:
        """Cosine times scale, [B, C]: the logits without margin."""
        return scaled_cosine(features_BD, self.weight, self.scale)


def scaled_cosine(features_BD: Tensor, weight_CD: Tensor, scale: float) -> Tensor:
    """Cosine of every feature with every class vector, times scale, [B, C].

    The scale goes into the features, B·D products instead of B·C.
    """
    wide = torch.promote_types(features_BD.dtype, torch.float32)
    with torch.autocast(features_BD.device.type, enabled=False):
        unit_BD = F.normalize(features_BD.to(wide))
        return F.linear(scale * unit_BD, F.normalize(weight_CD.to(wide)))

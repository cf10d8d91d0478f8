"""Heads that classify by cosine: what all of them share, and those whose margin is the target's.

Shapes: B batch, D embedding, C classes, M targets.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import PositiveFloat, PositiveInt, checked
from arcloop.models.heads.head import Head


class CosineClassifier(Head):
    """Cross-entropy over the cosines of a feature with one vector per class.

    All of it is float32 at least: at a scale of 64 a bfloat16 cosine would be off by a quarter in
    the logit.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: What cosines are multiplied by to become logits.

    Attributes:
        scale: The scale in use now, see `warm`.
        full_scale: That of the config.
        margin_share: Share of the margin that is in use now, in [0, 1], see `warm`.
    """

    warms = frozenset({"margin", "scale"})
    scale: float | Tensor

    @checked("head")
    def __init__(
        self, *, embedding_dim: PositiveInt, num_classes: PositiveInt, scale: PositiveFloat
    ) -> None:
        super().__init__()
        self.scale = self.full_scale = float(scale)
        self.margin_share = 1.0
        self.weight = self.make_weight(num_classes, embedding_dim)

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Draw the class vectors, [C, D], from torch's global generator."""
        # Only the direction counts: a length near 1 makes a learning rate mean the same at any D.
        return nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)

    def warm(self, *, margin: float | None = None, scale: float | None = None) -> None:
        """Choose margin and scale of the forward passes that follow; None leaves one as it is.

        Args:
            margin: Share of the margin, in [0, 1].
            scale: The scale.
        """
        if margin is not None:
            self.margin_share = margin
        if scale is not None:
            self.scale = scale

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


class TargetMargin(CosineClassifier):
    """A classifier whose margin is a function of the target's cosine and changes its logit alone.

    Only M of the B·C logits change, in place: with many classes one array of [B, C] is all that
    fits.
    """

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with the margin, [B, C]."""
        logits_BC = self.scaled_cosine(features_BD)
        self.add_margin(logits_BC, torch.arange(len(labels_B), device=labels_B.device), labels_B)
        return logits_BC

    def add_margin(self, logits_BC: Tensor, row_M: Tensor, column_M: Tensor) -> None:
        """Add the margin to the target logits, in place.

        Args:
            logits_BC: Cosines times scale.
            row_M: Rows of the targets.
            column_M: Their columns.
        """
        change_targets(logits_BC, self.scale, row_M, column_M, self.with_margin)

    @abstractmethod
    def with_margin(self, cos_M: Tensor) -> Tensor:
        """From the targets' cosines, in [-1, 1], what takes their place."""


def change_targets(
    logits_BC: Tensor,
    scale: float | Tensor,
    row_M: Tensor,
    column_M: Tensor,
    change: Callable[[Tensor], Tensor],
) -> None:
    """Change target logits in place.

    Args:
        logits_BC: Cosines times scale.
        scale: The scale.
        row_M: Rows of the targets.
        column_M: Their columns.
        change: Takes the targets' cosines, [M], in [-1, 1], and returns what takes their place.
    """
    cos_M = (logits_BC[row_M, column_M] / scale).clamp(-1, 1)
    logits_BC[row_M, column_M] = scale * change(cos_M)


def scaled_cosine(features_BD: Tensor, weight_CD: Tensor, scale: float | Tensor) -> Tensor:
    """Cosine of every feature with every class vector, times scale, [B, C].

    The scale goes into the features, B·D products instead of B·C.
    """
    kind = features_BD.device.type
    # Leaving autocast costs some of a small head's time, also where there was none to leave.
    full = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with full:
        unit_BD = _unit(widened(features_BD))
        return F.linear(scale * unit_BD, _unit(weight_CD.to(unit_BD.dtype)))


def _unit(rows_ND: Tensor) -> Tensor:
    """Do what `F.normalize` does, to the bit, in fewer steps forward and backward."""
    length_N1: Tensor = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True)
    return rows_ND / length_N1.clamp_min(1e-12)


def lengths(features_BD: Tensor) -> Tensor:
    """Length of each feature, [B], float32 (float64 if the features are)."""
    length_B: Tensor = torch.linalg.vector_norm(widened(features_BD), dim=1)
    return length_B


def widened(features_BD: Tensor) -> Tensor:
    """Features as float32, or as float64 if they are."""
    return features_BD.to(torch.promote_types(features_BD.dtype, torch.float32))

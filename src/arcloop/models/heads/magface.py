"""MagFace: the longer a feature, the larger its margin; lengths come to measure quality.

Meng et al., MagFace: A Universal Representation for Face Recognition and Quality Assessment, arXiv
2103.06627.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arcloop.config.value_types import Angle, NonNegativeFloat, PositiveFloat, PositiveInt, checked
from arcloop.errors import ConfigError
from arcloop.models.heads.arcface import cos_with_margin
from arcloop.models.heads.cosine_classifier import CosineClassifier, change_targets, lengths


class MagFace(CosineClassifier):
    """The target's logit is s·cos(θ + m(a)), where a is the length of the feature.

    m rises linearly from `low_margin` at a = `low_length` to `high_margin` at a = `high_length`; a
    is clamped to that range first. Added to the cross-entropy is λ·g(a) with
    g(a) = 1/a + a/high_length², which draws features to be long.

    Lengths are those before normalisation. Behind the embedder's last batch norm they lie around
    √D: 8 at D = 64, 22.6 at D = 512, where the paper has 10 and 110 as its range.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        low_margin: l_m, additive angle in radians.
        high_margin: u_m, additive angle in radians, not under `low_margin`.
        low_length: l_a.
        high_length: u_a, above `low_length`.
        length_weight: λ_g.
        easy_margin: Leave targets beyond a right angle as they are, see `cos_with_margin`; the
            authors' code does.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        low_margin: Angle,
        high_margin: Angle,
        low_length: PositiveFloat,
        high_length: PositiveFloat,
        length_weight: NonNegativeFloat,
        easy_margin: bool,
    ) -> None:
        if low_margin > high_margin or low_length >= high_length:
            raise ConfigError(
                f"head: margins {low_margin} to {high_margin}, lengths {low_length} to"
                f" {high_length} are no range",
                remedy="let low_margin be at most high_margin, and low_length under high_length",
            )
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=scale)
        self.low_margin, self.high_margin = float(low_margin), float(high_margin)
        self.low_length, self.high_length = float(low_length), float(high_length)
        self.length_weight, self.easy_margin = float(length_weight), easy_margin

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Mean cross-entropy; in training mode with margin, and with λ·g(a) added.

        Args:
            features_BD: Embeddings before normalisation, any floating type.
            labels_B: int64, in [0, C).

        Returns:
            Scalar, float32 (float64 if the features are).
        """
        loss = super().forward(features_BD, labels_B)
        if not self.training:
            return loss
        length_B = self._clamped(features_BD)
        regulariser_B = 1 / length_B + length_B / self.high_length**2
        return loss + self.length_weight * regulariser_B.mean()

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with the margin, [B, C]."""
        slope = (self.high_margin - self.low_margin) / (self.high_length - self.low_length)
        margin_B = self.low_margin + slope * (self._clamped(features_BD) - self.low_length)
        logits_BC = self.scaled_cosine(features_BD)
        rows_B = torch.arange(len(labels_B), device=labels_B.device)
        change_targets(
            logits_BC, self.scale, rows_B, labels_B,
            lambda cos_B: cos_with_margin(
                cos_B, self.margin_share * margin_B, easy_margin=self.easy_margin
            ),
        )  # fmt: skip
        return logits_BC

    def _clamped(self, features_BD: Tensor) -> Tensor:
        """Lengths within the range; outside of it they have no gradient."""
        return lengths(features_BD).clamp(self.low_length, self.high_length)

"""AdaFace: the margin follows the quality of the image, for which the feature's length stands in.

Kim et al., AdaFace: Quality Adaptive Margin for Face Recognition, arXiv 2204.00964.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arcloop.config.value_types import CosineMargin, Fraction, PositiveFloat, PositiveInt, checked
from arcloop.distributed.collectives import gather_rows
from arcloop.models.heads.arcface import sine
from arcloop.models.heads.cosine_classifier import CosineClassifier, change_targets, lengths

_SHORTEST, _LONGEST = 0.001, 100.0
_EPSILON = 0.001


class AdaFace(CosineClassifier):
    """The target's logit is s·(cos(θ - m·z) - m - m·z), every other one s·cos θ (section 3.3).

    z = h·(a - μ) / σ, clamped to [-1, 1], tells how long the feature is among others:
    short ones are pushed as by CosFace with an angle of +m as well, long ones as by a negative
    angle. θ - m·z stays within [0, π]. No gradient flows through z.

    μ and σ are moving averages of mean and standard deviation of the lengths over global batches,
    updated by a training step before they are used, as in the authors' code. They
    begin with those of the first batch: the authors begin with 20 and 100, which suits D = 512.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, as an angle in radians and in units of the cosine at once.
        concentration: h, how many standard deviations make z = 1 is 1/h.
        momentum: α, share of the old averages in the new ones.

    Attributes:
        length_mean: μ, a buffer.
        length_std: σ, a buffer; 0 as long as there was no batch.
    """

    length_mean: Tensor
    length_std: Tensor

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: CosineMargin,
        concentration: PositiveFloat,
        momentum: Fraction,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=scale)
        self.margin, self.concentration = float(margin), float(concentration)
        self.momentum = float(momentum)
        self.register_buffer("length_mean", torch.tensor(0.0))
        self.register_buffer("length_std", torch.tensor(0.0))

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with the margin, [B, C], after the averages have been updated."""
        length_B = lengths(features_BD.detach()).clamp(_SHORTEST, _LONGEST)
        self._remember(length_B)
        z_B = (length_B - self.length_mean) / (self.length_std + _EPSILON) * self.concentration
        logits_BC = self.scaled_cosine(features_BD)
        rows_B = torch.arange(len(labels_B), device=labels_B.device)
        change_targets(
            logits_BC, self.scale, rows_B, labels_B,
            lambda cos_B: _with_margin(cos_B, self.margin_share * self.margin, z_B.clamp(-1, 1)),
        )  # fmt: skip
        return logits_BC

    @torch.no_grad()
    def _remember(self, length_B: Tensor) -> None:
        length_N = gather_rows(length_B).to(self.length_mean.dtype)
        if len(length_N) < 2:
            return  # one length has no deviation
        std, mean = torch.std_mean(length_N)
        # Without a look at its value, for which a GPU would have to be waited for.
        share = torch.where(self.length_std == 0, 1.0, 1 - self.momentum).to(mean.dtype)
        self.length_mean.lerp_(mean, share)
        self.length_std.lerp_(std, share)


def _with_margin(cos_B: Tensor, margin: float, z_B: Tensor) -> Tensor:
    """cos(θ - m·z) - m - m·z with θ - m·z kept within [0, π]."""
    turn_B = -margin * z_B
    turned_B = cos_B * turn_B.cos() - sine(cos_B) * turn_B.sin()
    # θ + turn < 0 is cos θ > cos turn for a turn below 0; θ + turn > π likewise.
    below_B = (turn_B < 0) & (cos_B > turn_B.cos())
    beyond_B = (turn_B > 0) & (cos_B < (math.pi - turn_B).cos())
    turned_B = turned_B.masked_fill(below_B, 1.0).masked_fill(beyond_B, -1.0)
    return turned_B - margin * (1 + z_B)

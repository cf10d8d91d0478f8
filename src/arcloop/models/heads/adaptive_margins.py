"""Heads whose margins adapt to the training: CurricularFace, AdaFace and MagFace.

Huang et al., CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition, arXiv
2004.00288.
Kim et al., AdaFace: Quality Adaptive Margin for Face Recognition, arXiv 2204.00964.
Meng et al., MagFace: A Universal Representation for Face Recognition and Quality Assessment, arXiv
2103.06627.

AdaFace and MagFace use the norm of the feature, a proxy of image quality.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from arcloop.config.value_types import (
    Angle,
    CosineMargin,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    checked,
)
from arcloop.distributed.collectives import gather_rows
from arcloop.errors import ConfigError
from arcloop.models.heads.arcface import cos_with_margin, sin_from_cos
from arcloop.models.heads.cosine_classifier import (
    CosineClassifier,
    change_targets,
    feature_norms,
    scaled_cosine,
)

_MIN_NORM, _MAX_NORM = 0.001, 100.0
_EPSILON = 0.001


class CurricularFace(CosineClassifier):
    """ArcFace that multiplies cos θ of hard negatives by t + cos θ (section 3).

    The target logit is s·T with T = cos(θ + m). The logit of another class is s·cos θ where
    cos θ <= T, and s·cos θ·(t + cos θ) where cos θ > T. t is the moving average of the targets'
    cosines over global batches. As in the authors' code, a training step updates it before use.

    Args:
        margin: m, additive angle in radians, in [0, π).
        momentum: Weight of the previous t in an update, in [0, 1]. (In the paper, α = 0.99 is the
            weight of the batch; in the authors' code it is the weight of the previous t.)
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.

    Attributes:
        t: The moving average, a buffer; 0 at the start.
    """

    t: Tensor

    @checked("head")
    def __init__(self, *, margin: Angle, momentum: Fraction, **shared: Any) -> None:
        super().__init__(**shared)
        self.margin, self.momentum = float(margin), float(momentum)
        self.register_buffer("t", torch.tensor(0.0))

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with margin and weighted negatives, [B, C], computed after the update of t."""
        cos_BC = scaled_cosine(features_BD, self.weight, 1.0)
        rows_B = torch.arange(len(labels_B), device=labels_B.device)
        target_B = cos_BC[rows_B, labels_B].clamp(-1, 1)
        moved_B = cos_with_margin(target_B, self.margin_factor * self.margin, easy_margin=False)
        mean = gather_rows(target_B.detach()).mean()
        self.t.lerp_(mean.to(self.t.dtype), 1 - self.momentum)
        # A copy, because the buffer may change before this step's backward pass.
        weighted_BC = cos_BC * (self.t.clone() + cos_BC)
        is_hard_BC = cos_BC > moved_B.detach()[:, None]
        logits_BC = self.scale * torch.where(is_hard_BC, weighted_BC, cos_BC)
        logits_BC[rows_B, labels_B] = self.scale * moved_B
        return logits_BC


class AdaFace(CosineClassifier):
    """The target logit is s·(cos(θ - m·z) - m - m·z), every other logit s·cos θ (section 3.3).

    z = h·(a - μ) / σ, clamped to [-1, 1], compares the norm a of a feature with the average norm.
    For z = -1 the margin equals that of ArcFace and for z = 0 that of CosFace. For z = 1 it
    consists of a negative angle and a larger cosine margin. θ - m·z is clamped to [0, π]. No
    gradient flows through z.

    μ and σ are moving averages of the mean and standard deviation of the norms over global batches.
    As in the authors' code, a training step updates them before it uses them. Their initial
    values are those of the first batch; the authors' code uses 20 and 100, which fit D = 512.

    Args:
        margin: m, in [0, 1], both an angle in radians and a margin of the cosine.
        concentration: h, above 0; z reaches 1 at 1/h standard deviations.
        momentum: α, weight of the previous averages in an update, in [0, 1].
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.

    Attributes:
        length_mean: μ, a buffer.
        length_std: σ, a buffer; 0 before the first batch.
    """

    norm_is_quality = True
    length_mean: Tensor
    length_std: Tensor

    @checked("head")
    def __init__(
        self,
        *,
        margin: CosineMargin,
        concentration: PositiveFloat,
        momentum: Fraction,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.margin, self.concentration = float(margin), float(concentration)
        self.momentum = float(momentum)
        self.register_buffer("length_mean", torch.tensor(0.0))
        self.register_buffer("length_std", torch.tensor(0.0))

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with margin, [B, C], computed after the update of the moving averages."""
        norm_B = feature_norms(features_BD.detach()).clamp(_MIN_NORM, _MAX_NORM)
        self._update_averages(norm_B)
        z_B = (norm_B - self.length_mean) / (self.length_std + _EPSILON) * self.concentration
        margin = self.margin_factor * self.margin
        logits_BC = self.scaled_cosine(features_BD)
        change_targets(
            logits_BC,
            self.scale,
            labels_B,
            lambda cos_B: _cos_with_adaptive_margin(cos_B, margin, z_B.clamp(-1, 1)),
        )
        return logits_BC

    @torch.no_grad()
    def _update_averages(self, norm_B: Tensor) -> None:
        """Update μ and σ with the norms of the global batch; nothing for a batch of one."""
        norm_N = gather_rows(norm_B).to(self.length_mean.dtype)
        if len(norm_N) < 2:
            return  # the standard deviation of one value is not defined
        std, mean = torch.std_mean(norm_N)
        # Computed on the device, because reading the value would synchronise with the GPU.
        weight = torch.where(self.length_std == 0, 1.0, 1 - self.momentum).to(mean.dtype)
        self.length_mean.lerp_(mean, weight)
        self.length_std.lerp_(std, weight)


def _cos_with_adaptive_margin(cos_B: Tensor, margin: float, z_B: Tensor) -> Tensor:
    """Compute cos(θ - m·z) - m - m·z with θ - m·z clamped to [0, π]."""
    # `sin_from_cos` has a finite gradient at |cos θ| = 1; the gradient of acos is infinite.
    angle_B = torch.atan2(sin_from_cos(cos_B), cos_B) - margin * z_B
    return angle_B.clamp(0, math.pi).cos() - margin * (1 + z_B)


class MagFace(CosineClassifier):
    """The target logit is s·cos(θ + m(a)), where a is the norm of the feature (section 3.2).

    m increases linearly from `low_margin` at a = `low_length` to `high_margin` at
    a = `high_length`; a is clamped to this range. The loss is the cross-entropy plus λ·g(a) with
    g(a) = 1/a + a/high_length², which favours large norms.

    a is the norm before normalisation. After the last batch norm of the embedder it is near √D: 8
    for D = 64 and 22.6 for D = 512. The paper uses the range from 10 to 110.

    Args:
        low_margin: l_m, additive angle in radians, in [0, π).
        high_margin: u_m, additive angle in radians, at least `low_margin`.
        low_length: l_a, lower limit of the norm, above 0.
        high_length: u_a, upper limit of the norm, above `low_length`.
        length_weight: λ_g, weight of g, at least 0; see `min_length_weight`.
        easy_margin: Apply no margin to targets with θ above π/2, see `cos_with_margin`; the
            authors' code does so.
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.

    Raises:
        ConfigError: A lower limit exceeds its upper limit.
    """

    norm_is_quality = True

    @checked("head")
    def __init__(
        self,
        *,
        low_margin: Angle,
        high_margin: Angle,
        low_length: PositiveFloat,
        high_length: PositiveFloat,
        length_weight: NonNegativeFloat,
        easy_margin: bool,
        **shared: Any,
    ) -> None:
        if low_margin > high_margin or low_length >= high_length:
            raise ConfigError(
                f"head: margins {low_margin} to {high_margin} and lengths {low_length} to"
                f" {high_length} are not ranges",
                remedy="set low_margin to at most high_margin, and low_length below high_length",
            )
        super().__init__(**shared)
        self.low_margin, self.high_margin = float(low_margin), float(high_margin)
        self.low_length, self.high_length = float(low_length), float(high_length)
        self.length_weight, self.easy_margin = float(length_weight), easy_margin

    @property
    def slope(self) -> float:
        """K, increase of the margin per unit of the norm."""
        return (self.high_margin - self.low_margin) / (self.high_length - self.low_length)

    @property
    def min_length_weight(self) -> float:
        """Lower bound of the authors on λ_g: s·K·u_a²·l_a² / (u_a² - l_a²).

        With a smaller weight, the gradient at a = l_a can point to smaller norms. The norms of
        hard images then end at l_a, where they no longer order the images by quality.
        """
        return self.full_scale * self.slope / (self.low_length**-2 - self.high_length**-2)

    def cautions(self) -> list[str]:
        """Compare λ_g with its lower bound, and the expected norm with [l_a, u_a]."""
        found, norm = [], math.sqrt(self.weight.shape[1])
        if self.length_weight < self.min_length_weight:
            found.append(
                f"head.length_weight={self.length_weight:g} is below {self.min_length_weight:.1f},"
                " the lower bound of MagFace for these margins, lengths and scale"
            )
        if not self.low_length <= norm <= self.high_length:
            found.append(
                f"the norms of features are near √embedding_dim = {norm:.1f}, outside of"
                f" head.low_length={self.low_length:g} to head.high_length={self.high_length:g}"
            )
        return found

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        loss = super().forward(features_BD, labels_B)
        if not self.training:
            return loss
        norm_B = self._clamped_norms(features_BD)
        regularizer_B = 1 / norm_B + norm_B / self.high_length**2
        return loss + self.length_weight * regularizer_B.mean()

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with margin, [B, C]."""
        margin_B = self.low_margin + self.slope * (
            self._clamped_norms(features_BD) - self.low_length
        )
        margin_B = self.margin_factor * margin_B
        logits_BC = self.scaled_cosine(features_BD)
        change_targets(
            logits_BC,
            self.scale,
            labels_B,
            lambda cos_B: cos_with_margin(cos_B, margin_B, easy_margin=self.easy_margin),
        )
        return logits_BC

    def _clamped_norms(self, features_BD: Tensor) -> Tensor:
        """Norms clamped to the range [l_a, u_a]; outside of it their gradient is zero."""
        return feature_norms(features_BD).clamp(self.low_length, self.high_length)

"""ArcFace, and the other heads whose margin changes only the target logit.

Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv 1801.07698.
Deng et al., Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces, ECCV
2020.
Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, arXiv 1801.09414; the same
loss as AM-Softmax, arXiv 1801.05599.
Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, arXiv 1704.08063.
Boutros et al., ElasticFace: Elastic Margin Loss for Deep Face Recognition, arXiv 2109.09416.

Shapes: B batch, D embedding, C classes, K sub-centers, M targets.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import (
    Angle,
    CosineMargin,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from arcloop.models.heads.class_size_margin import ClassSizeMargin
from arcloop.models.heads.cosine_classifier import TargetMargin, scaled_cosine

_MAX_ANGLE = math.nextafter(math.pi, 0)


class ArcFace(ClassSizeMargin):
    """The target logit is s·cos(θ + m), every other logit s·cos θ (equation 3).

    Args:
        margin: m, additive angle in radians, in [0, π).
        easy_margin: Apply no margin to targets with θ above π/2, see `cos_with_margin`.
        size_margin: Angle in radians that is added for small classes, 0 for none, see
            `ClassSizeMargin`.
        **shared: size_power, embedding_dim, num_classes and scale, see `ClassSizeMargin`.
    """

    @checked("head")
    def __init__(
        self, *, margin: Angle, easy_margin: bool, size_margin: Angle, **shared: Any
    ) -> None:
        super().__init__(margin=margin, size_margin=size_margin, limit=_MAX_ANGLE, **shared)
        self.easy_margin = easy_margin

    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        return cos_with_margin(cos_M, self.margin_of(labels_M), easy_margin=self.easy_margin)


class SubCenterArcFace(ArcFace):
    """ArcFace with K vectors per class; cos θ is the largest of the K cosines (section 3).

    Images with wrong labels, or unlike the rest of their class, move to sub-centers of their own
    and affect the dominant one less. It uses K times the memory of ArcFace.

    Args:
        sub_centers: K, number of vectors per class.
        **shared: The parameters of `ArcFace`.
    """

    @checked("head")
    def __init__(self, *, sub_centers: PositiveInt, **shared: Any) -> None:
        self._sub_centers = sub_centers
        super().__init__(**shared)

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Draw the sub-centers, [C, K, D], from torch's global generator."""
        drawn_CKD = torch.randn(num_classes, self._sub_centers, embedding_dim)
        return nn.Parameter(drawn_CKD / embedding_dim**0.5)

    def scaled_cosine(self, features_BD: Tensor) -> Tensor:
        """Largest cosine with the sub-centers of each class, times scale, [B, C]."""
        all_BCK = scaled_cosine(features_BD, self.weight.flatten(0, 1), self.scale).view(
            -1, *self.weight.shape[:2]
        )
        return all_BCK.max(dim=2).values

    def class_vectors(self) -> Tensor:
        """Sum of the unit vectors of the sub-centers of each class, [C, D]."""
        return F.normalize(self.weight, dim=2).sum(dim=1)


class CosFace(ClassSizeMargin):
    """The target logit is s·(cos θ - m), every other logit s·cos θ (equation 4 of CosFace).

    Args:
        margin: m, subtracted from the cosine, in [0, 1].
        size_margin: Added to m for small classes, in [0, 1], see `ClassSizeMargin`; with m = 0 the
            loss is LDAM.
        **shared: size_power, embedding_dim, num_classes and scale, see `ClassSizeMargin`.
    """

    @checked("head")
    def __init__(self, *, margin: CosineMargin, size_margin: CosineMargin, **shared: Any) -> None:
        super().__init__(margin=margin, size_margin=size_margin, limit=1.0, **shared)

    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        return cos_M - self.margin_of(labels_M)


class CombinedMargin(TargetMargin):
    """The target logit is s·(cos(m1·θ + m2) - m3), others s·cos θ (equation 4 of ArcFace).

    It is the CombinedMarginLoss of insightface, whose PyTorch code implements only (1, m2, 0) and
    (1, 0, m3). For angles above π, where the cosine increases, see `decreasing_cos`.

    Args:
        m1: Factor of the angle, above 0; 1 is no margin.
        m2: Additive angle in radians, in [0, π); 0 is no margin.
        m3: Margin subtracted from the cosine, in [0, 1]; 0 is no margin.
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.
    """

    @checked("head")
    def __init__(self, *, m1: PositiveFloat, m2: Angle, m3: CosineMargin, **shared: Any) -> None:
        super().__init__(**shared)
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)

    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        factor = self.margin_factor
        # `sin_from_cos` has a finite gradient at |cos θ| = 1; the gradient of acos is infinite.
        angle_M = torch.atan2(sin_from_cos(cos_M), cos_M)
        moved_M = (1 + factor * (self.m1 - 1)) * angle_M + factor * self.m2
        return decreasing_cos(moved_M) - factor * self.m3


class ElasticArcFace(ArcFace):
    """The target logit is s·cos(θ + m') with m' drawn around m (section 3.2).

    Args:
        std: σ, standard deviation of the margins in radians, at least 0; `margin` is their mean.
        plus: Assign the larger margins to the images that are farther from their class
            (ElasticFace+), within the batch of one process.
        **shared: margin, embedding_dim, num_classes and scale, see `ArcFace`.
    """

    @checked("head")
    def __init__(self, *, std: NonNegativeFloat, plus: bool, **shared: Any) -> None:
        super().__init__(easy_margin=False, size_margin=0.0, size_power=0.0, **shared)
        self.std, self.plus = float(std), plus

    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        drawn_M = draw_margins(cos_M.detach(), self.margin, self.std, plus=self.plus)
        margin_M = (self.margin_factor * drawn_M).clamp(max=math.pi)
        return cos_with_margin(cos_M, margin_M, easy_margin=False)


class ElasticCosFace(CosFace):
    """The target logit is s·(cos θ - m') with m' drawn around m (section 3.2).

    Args:
        std: σ, standard deviation of the margins of the cosine, at least 0; `margin` is their mean.
        plus: Assign the larger margins to the images that are farther from their class
            (ElasticFace+), within the batch of one process.
        **shared: margin, embedding_dim, num_classes and scale, see `CosFace`.
    """

    @checked("head")
    def __init__(self, *, std: NonNegativeFloat, plus: bool, **shared: Any) -> None:
        super().__init__(size_margin=0.0, size_power=0.0, **shared)
        self.std, self.plus = float(std), plus

    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        drawn_M = draw_margins(cos_M.detach(), self.margin, self.std, plus=self.plus)
        return cos_M - self.margin_factor * drawn_M


def draw_margins(cos_M: Tensor, mean: float, std: float, *, plus: bool) -> Tensor:
    """Draw one margin per target from a normal distribution; negative margins are set to 0.

    The margins come from torch's global CPU generator, so they are the same on any device and are
    determined by the seed.

    Args:
        cos_M: Cosines of the targets, without gradient.
        mean: Mean of the margins.
        std: Standard deviation of the margins.
        plus: Sort the margins by the distance to the class, the largest for the farthest image.

    Returns:
        Tensor like `cos_M`.
    """
    normal_M = torch.randn(len(cos_M), dtype=torch.float32, device="cpu")
    margin_M = (mean + std * normal_M).clamp(min=0).to(cos_M)
    if plus:
        margin_M[cos_M.argsort(stable=True)] = margin_M.sort(descending=True).values
    return margin_M


def cos_with_margin(cos: Tensor, margin: Angle | Tensor, *, easy_margin: bool) -> Tensor:
    """Compute cos(θ + m) from cos θ, without acos, whose gradient is infinite at |cos θ| = 1.

    For θ above π - m, cos(θ + m) would increase again. The result there is cos θ - m·sin m, as in
    the authors' code, which continues to decrease.

    Args:
        cos: cos θ in [-1, 1], any shape, float32 or float64.
        margin: m, in radians, in [0, π); a tensor shaped like `cos` for one margin per element.
        easy_margin: Return cos θ for θ above π/2 instead.

    Returns:
        Tensor like `cos`. It decreases as θ grows (for m up to 2.33, where cos m + m·sin m = 1),
        and its gradient is finite everywhere.

    >>> cos_with_margin(torch.tensor([1.0, 0.0, -1.0]), 0.5, easy_margin=False)
    tensor([ 0.8776, -0.4794, -1.2397])
    """
    cos_m, sin_m = (
        (margin.cos(), margin.sin())
        if isinstance(margin, Tensor)
        else (math.cos(margin), math.sin(margin))
    )
    moved = cos * cos_m - sin_from_cos(cos) * sin_m
    if easy_margin:
        return torch.where(cos > 0, moved, cos)
    return torch.where(cos > -cos_m, moved, cos - margin * sin_m)


def sin_from_cos(cos: Tensor) -> Tensor:
    """Compute sin θ from cos θ, for θ in [0, π], with a finite gradient at |cos θ| = 1."""
    # The lower bound is below the square of every non-zero sine, so it changes no value. At
    # sin θ = 0 it sets the gradient to zero, which would otherwise be infinite.
    floor = torch.finfo(cos.dtype).eps ** 2
    return ((1 - cos) * (1 + cos)).clamp_min(floor).sqrt()


def decreasing_cos(angle: Tensor) -> Tensor:
    """Compute a cosine that keeps decreasing above π: (-1)^k·cos φ - 2k with k = floor(φ / π).

    This is the function ψ of SphereFace (equation 7), extended to any angle.

    Args:
        angle: φ in radians, at least 0, any shape.

    Returns:
        Tensor like `angle`.

    >>> decreasing_cos(torch.tensor([0.0, math.pi, 2 * math.pi]))
    tensor([ 1., -1., -3.])
    """
    turn = (angle / math.pi).floor()
    return (1 - 2 * turn.remainder(2)) * angle.cos() - 2 * turn

"""ArcFace: an additive angular margin between a feature and its class, optionally with sub-centers.

Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv 1801.07698.
Deng et al., Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces, ECCV
2020.

Shapes: B batch, D embedding, C classes, K sub-centers, M targets.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from arcloop.config.value_types import Angle, PositiveInt, checked
from arcloop.models.heads.cosine_classifier import TargetMargin, scaled_cosine


class ArcFace(TargetMargin):
    """The target logit is s·cos(θ + m), every other logit s·cos θ (equation 3).

    Args:
        margin: m, additive angle in radians, in [0, π).
        easy_margin: Apply no margin to targets with θ above π/2, see `cos_with_margin`.
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.
    """

    @checked("head")
    def __init__(self, *, margin: Angle, easy_margin: bool, **shared: Any) -> None:
        super().__init__(**shared)
        self.margin = float(margin)
        self.easy_margin = easy_margin

    def with_margin(self, cos_M: Tensor) -> Tensor:
        margin = self.margin_factor * self.margin
        return cos_with_margin(cos_M, margin, easy_margin=self.easy_margin)


class SubCenterArcFace(ArcFace):
    """ArcFace with K vectors per class; cos θ is the largest of the K cosines (section 3).

    Images with wrong labels, or unlike the rest of their class, move to sub-centers of their own
    and affect the dominant one less. It uses K times the memory of ArcFace.

    Args:
        sub_centers: K, number of vectors per class.
        **shared: margin, easy_margin, embedding_dim, num_classes and scale, see `ArcFace`.
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

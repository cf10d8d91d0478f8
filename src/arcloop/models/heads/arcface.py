"""ArcFace: an additive angular margin between a feature and its class.

Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv 1801.07698.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arcloop.config.value_types import Angle, PositiveFloat, PositiveInt, checked
from arcloop.models.heads.cosine_classifier import TargetMargin


class ArcFace(TargetMargin):
    """The target's logit is s·cos(θ + m), every other one s·cos θ (equation 3).

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, additive angle in radians.
        easy_margin: Leave targets beyond a right angle as they are, see `cos_with_margin`.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: Angle,
        easy_margin: bool,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=scale)
        self.margin = float(margin)
        self.easy_margin = easy_margin

    def with_margin(self, cos_M: Tensor) -> Tensor:
        margin = self.margin_share * self.margin
        return cos_with_margin(cos_M, margin, easy_margin=self.easy_margin)


def cos_with_margin(cos: Tensor, margin: Angle | Tensor, *, easy_margin: bool) -> Tensor:
    """cos(θ + m) from cos θ, without the acos whose gradient is infinite at |cos θ| = 1.

    Beyond θ = π - m, where cos(θ + m) would rise again, it goes on falling as cos θ - m·sin m
    (the authors' code). With `easy_margin` there is no margin beyond θ = π/2 instead.

    Args:
        cos: cos θ in [-1, 1], any shape, float32 or float64.
        margin: m, in radians, in [0, π); a tensor like `cos` where each θ has its own.
        easy_margin: Which continuation to take.

    Returns:
        Tensor like `cos`. It falls as θ grows (for m up to 2.33, where cos m + m·sin m = 1), and
        its gradient is finite everywhere.

    >>> cos_with_margin(torch.tensor([1.0, 0.0, -1.0]), 0.5, easy_margin=False)
    tensor([ 0.8776, -0.4794, -1.2397])
    """
    cos_m, sin_m = (
        (margin.cos(), margin.sin())
        if isinstance(margin, Tensor)
        else (math.cos(margin), math.sin(margin))
    )
    moved = cos * cos_m - sine(cos) * sin_m
    if easy_margin:
        return torch.where(cos > 0, moved, cos)
    return torch.where(cos > -cos_m, moved, cos - margin * sin_m)


def sine(cos: Tensor) -> Tensor:
    """Sin θ from cos θ, for θ in [0, π], with a gradient that is finite at |cos θ| = 1."""
    # The floor lies below the square of any sine but 0, so it changes no value. At 0 it stops the
    # gradient, which would be infinite.
    floor = torch.finfo(cos.dtype).eps ** 2
    return ((1 - cos) * (1 + cos)).clamp_min(floor).sqrt()

"""SphereFace's, ArcFace's and CosFace's margins in one.

Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv 1801.07698,
section 3.2; Liu et al., SphereFace, arXiv 1704.08063.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arcloop.config.value_types import Angle, CosineMargin, PositiveFloat, PositiveInt, checked
from arcloop.models.heads.arcface import sine
from arcloop.models.heads.cosine_classifier import TargetMargin


class CombinedMargin(TargetMargin):
    """The target's logit is s·(cos(m1·θ + m2) - m3), every other one s·cos θ (equation 4).

    insightface's CombinedMarginLoss, whose torch code takes only (1, m2, 0) and (1, 0, m3). Beyond
    an angle of π, where the cosine would rise again, this one goes on falling, see `falling_cos`.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        m1: Factor of the angle; 1 is no margin.
        m2: Additive angle in radians; 0 is no margin.
        m3: Additive margin in units of the cosine; 0 is no margin.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        m1: PositiveFloat,
        m2: Angle,
        m3: CosineMargin,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=scale)
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)

    def with_margin(self, cos_M: Tensor) -> Tensor:
        share = self.margin_share
        # From the floored sine: its gradient is finite where that of acos is not.
        angle_M = torch.atan2(sine(cos_M), cos_M)
        moved_M = (1 + share * (self.m1 - 1)) * angle_M + share * self.m2
        return falling_cos(moved_M) - share * self.m3


def falling_cos(angle: Tensor) -> Tensor:
    """Cosine that goes on falling beyond π: (-1)^k·cos φ - 2k with k = floor(φ / π).

    SphereFace's ψ, of any angle.

    Args:
        angle: φ in radians, not negative, any shape.

    >>> falling_cos(torch.tensor([0.0, math.pi, 2 * math.pi]))
    tensor([ 1., -1., -3.])
    """
    turn = (angle / math.pi).floor()
    return (1 - 2 * turn.remainder(2)) * angle.cos() - 2 * turn

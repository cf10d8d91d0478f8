"""CosFace, and the combined margin of SphereFace, ArcFace and CosFace.

Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, arXiv 1801.09414; the same
loss as AM-Softmax, arXiv 1801.05599.
Liu et al., SphereFace: Deep Hypersphere Embedding for Face Recognition, arXiv 1704.08063.
Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, arXiv 1801.07698,
section 3.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from arcloop.config.value_types import Angle, CosineMargin, PositiveFloat, checked
from arcloop.models.heads.arcface import sin_from_cos
from arcloop.models.heads.cosine_classifier import TargetMargin


class CosFace(TargetMargin):
    """The target logit is s·(cos θ - m), every other logit s·cos θ (equation 4 of CosFace).

    Args:
        margin: m, subtracted from the cosine, in [0, 1].
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.
    """

    @checked("head")
    def __init__(self, *, margin: CosineMargin, **shared: Any) -> None:
        super().__init__(**shared)
        self.margin = float(margin)

    def with_margin(self, cos_M: Tensor) -> Tensor:
        return cos_M - self.margin_factor * self.margin


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

    def with_margin(self, cos_M: Tensor) -> Tensor:
        factor = self.margin_factor
        # `sin_from_cos` has a finite gradient at |cos θ| = 1; the gradient of acos is infinite.
        angle_M = torch.atan2(sin_from_cos(cos_M), cos_M)
        moved_M = (1 + factor * (self.m1 - 1)) * angle_M + factor * self.m2
        return decreasing_cos(moved_M) - factor * self.m3


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

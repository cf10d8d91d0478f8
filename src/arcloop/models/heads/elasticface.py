"""ElasticFace: in every step each image has its own margin, drawn at random.

Boutros et al., ElasticFace: Elastic Margin Loss for Deep Face Recognition, arXiv 2109.09416.

Shapes: M targets.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from arcloop.config.value_types import Angle, CosineMargin, NonNegativeFloat, checked
from arcloop.models.heads.arcface import cos_with_margin
from arcloop.models.heads.cosine_classifier import TargetMargin


class ElasticFace(TargetMargin):
    """Base class of heads that draw their margins from a normal distribution in every step.

    The margins come from torch's global CPU generator, so they are the same on any device and are
    determined by the seed. Negative margins are set to 0.

    Args:
        margin: m, mean of the margins.
        std: σ, standard deviation of the margins, in the unit of `margin`, at least 0.
        plus: Assign the larger margins to the images that are farther from their class
            (ElasticFace+), within the batch of one process.
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.
    """

    @checked("head")
    def __init__(self, *, margin: float, std: NonNegativeFloat, plus: bool, **shared: Any) -> None:
        super().__init__(**shared)
        self.margin, self.std, self.plus = float(margin), float(std), plus

    def with_margin(self, cos_M: Tensor) -> Tensor:
        return self.with_margins(cos_M, self.margin_factor * self._draw_margins(cos_M.detach()))

    @abstractmethod
    def with_margins(self, cos_M: Tensor, margin_M: Tensor) -> Tensor:
        """Return the target logits divided by the scale, given cosines and margins, [M]."""

    def _draw_margins(self, cos_M: Tensor) -> Tensor:
        """Draw one margin per target, [M]; with `plus`, sorted by the distance to the class."""
        normal_M = torch.randn(len(cos_M), dtype=torch.float32, device="cpu")
        margin_M = (self.margin + self.std * normal_M).clamp(min=0).to(cos_M)
        if self.plus:
            farthest_first_M = cos_M.argsort(stable=True)
            margin_M[farthest_first_M] = margin_M.sort(descending=True).values
        return margin_M


class ElasticArcFace(ElasticFace):
    """The target logit is s·cos(θ + m') with m' drawn around m (section 3.2).

    Args:
        margin: m, mean of the additive angles in radians, in [0, π).
        **shared: std, plus, embedding_dim, num_classes and scale, see `ElasticFace`.
    """

    @checked("head")
    def __init__(self, *, margin: Angle, **shared: Any) -> None:
        super().__init__(margin=margin, **shared)

    def with_margins(self, cos_M: Tensor, margin_M: Tensor) -> Tensor:
        return cos_with_margin(cos_M, margin_M.clamp(max=math.pi), easy_margin=False)


class ElasticCosFace(ElasticFace):
    """The target logit is s·(cos θ - m') with m' drawn around m (section 3.2).

    Args:
        margin: m, mean of the margins of the cosine, in [0, 1].
        **shared: std, plus, embedding_dim, num_classes and scale, see `ElasticFace`.
    """

    @checked("head")
    def __init__(self, *, margin: CosineMargin, **shared: Any) -> None:
        super().__init__(margin=margin, **shared)

    def with_margins(self, cos_M: Tensor, margin_M: Tensor) -> Tensor:
        return cos_M - margin_M

"""ElasticFace: each image has a margin of its own in each step, drawn at random.

Boutros et al., ElasticFace: Elastic Margin Loss for Deep Face Recognition, arXiv 2109.09416.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from arcloop.config.value_types import (
    Angle,
    CosineMargin,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    checked,
)
from arcloop.models.heads.arcface import cos_with_margin
from arcloop.models.heads.cosine_classifier import TargetMargin


class ElasticFace(TargetMargin):
    """What both kinds share: margins from a normal distribution, drawn anew in every step.

    They come from torch's global generator of the CPU, so they are the same on any device, and a
    function of what the generator was seeded with. One below 0 is taken as 0.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, mean of the margins.
        std: σ, their standard deviation.
        plus: Give the larger margins to the images that are farther from their class
            (ElasticFace+), within the batch of a process.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: float,
        std: NonNegativeFloat,
        plus: bool,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=scale)
        self.margin, self.std, self.plus = float(margin), float(std), plus

    def with_margin(self, cos_M: Tensor) -> Tensor:
        return self.moved(cos_M, self.margin_share * self._draw(cos_M.detach()))

    @abstractmethod
    def moved(self, cos_M: Tensor, margin_M: Tensor) -> Tensor:
        """From the targets' cosines and a margin for each, what takes their place."""

    def _draw(self, cos_M: Tensor) -> Tensor:
        normal_M = torch.randn(len(cos_M), dtype=torch.float32, device="cpu")
        margin_M = (self.margin + self.std * normal_M).clamp(min=0).to(cos_M)
        if self.plus:
            farthest_first_M = cos_M.argsort(stable=True)
            margin_M[farthest_first_M] = margin_M.sort(descending=True).values
        return margin_M


class ElasticArcFace(ElasticFace):
    """The target's logit is s·cos(θ + m') with m' drawn around m.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, additive angle in radians, mean of the margins.
        std: σ, their standard deviation in radians.
        plus: Give the larger margins to the images that are farther from their class.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: Angle,
        std: NonNegativeFloat,
        plus: bool,
    ) -> None:
        super().__init__(
            embedding_dim=embedding_dim,
            num_classes=num_classes,
            scale=scale,
            margin=margin,
            std=std,
            plus=plus,
        )

    def moved(self, cos_M: Tensor, margin_M: Tensor) -> Tensor:
        return cos_with_margin(cos_M, margin_M.clamp(max=math.pi), easy_margin=False)


class ElasticCosFace(ElasticFace):
    """The target's logit is s·(cos θ - m') with m' drawn around m.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, in units of the cosine, mean of the margins.
        std: σ, their standard deviation in units of the cosine.
        plus: Give the larger margins to the images that are farther from their class.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: CosineMargin,
        std: NonNegativeFloat,
        plus: bool,
    ) -> None:
        super().__init__(
            embedding_dim=embedding_dim,
            num_classes=num_classes,
            scale=scale,
            margin=margin,
            std=std,
            plus=plus,
        )

    def moved(self, cos_M: Tensor, margin_M: Tensor) -> Tensor:
        return cos_M - margin_M

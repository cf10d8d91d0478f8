"""Sub-center ArcFace: several vectors per class, of which the nearest counts.

Deng et al., Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces, ECCV
2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arcloop.config.value_types import Angle, PositiveFloat, PositiveInt, checked
from arcloop.models.heads.arcface import ArcFace
from arcloop.models.heads.cosine_classifier import scaled_cosine


class SubCenterArcFace(ArcFace):
    """ArcFace in which cos θ of a class is the largest cosine with its K sub-centers (section 3).

    Images that are mislabelled or unlike the rest of their class gather around sub-centers of their
    own and pull less at the dominant one. It takes K times the memory of ArcFace.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, additive angle in radians.
        easy_margin: Leave targets beyond a right angle as they are, see `cos_with_margin`.
        sub_centers: K, vectors per class.
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
        sub_centers: PositiveInt,
    ) -> None:
        self._sub_centers = sub_centers
        super().__init__(
            embedding_dim=embedding_dim,
            num_classes=num_classes,
            scale=scale,
            margin=margin,
            easy_margin=easy_margin,
        )

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Draw the sub-centers, [C, K, D], from torch's global generator."""
        drawn_CKD = torch.randn(num_classes, self._sub_centers, embedding_dim)
        return nn.Parameter(drawn_CKD / embedding_dim**0.5)

    def scaled_cosine(self, features_BD: Tensor) -> Tensor:
        """Largest cosine with a class's sub-centers, times scale, [B, C]."""
        all_BCK = scaled_cosine(features_BD, self.weight.flatten(0, 1), self.scale).view(
            -1, *self.weight.shape[:2]
        )
        return all_BCK.max(dim=2).values

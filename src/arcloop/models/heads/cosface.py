"""CosFace: an additive margin in the cosine.

Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, arXiv 1801.09414; the same
as AM-Softmax, arXiv 1801.05599.
"""

from __future__ import annotations

from torch import Tensor

from arcloop.config.value_types import CosineMargin, PositiveFloat, PositiveInt, checked
from arcloop.models.heads.cosine_classifier import TargetMargin


class CosFace(TargetMargin):
    """The target's logit is s·(cos θ - m), every other one s·cos θ (equation 4).

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
        margin: m, in units of the cosine, no angle.
    """

    @checked("head")
    def __init__(
        self,
        *,
        embedding_dim: PositiveInt,
        num_classes: PositiveInt,
        scale: PositiveFloat,
        margin: CosineMargin,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=scale)
        self.margin = float(margin)

    def with_margin(self, cos_M: Tensor) -> Tensor:
        return cos_M - self.margin_share * self.margin

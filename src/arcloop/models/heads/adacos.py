"""AdaCos: a scale that is computed, and no margin.

Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
Representations, arXiv 1905.00292.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arcloop.config.value_types import PositiveInt, checked
from arcloop.distributed.collectives import gather_rows
from arcloop.models.heads.cosine_classifier import CosineClassifier, scaled_cosine

_LEAST = 1.0
_BLOCK = 2**20


class AdaCos(CosineClassifier):
    """Every logit is s·cos θ, where s follows from the number of classes and from the angles.

    The fixed scale is √2·ln(C - 1) (section 4.1). The dynamic one begins with it and is set anew in
    every training step, before it is used, to ln(B) / cos(min(π/4, θ_med)) (section 4.2). B is the
    mean over the global batch of Σ exp(s·cos θ) over all classes but the target, with the s of the
    step before, and θ_med the median angle between a feature and its class. Either is at least 1:
    the formulas are made for many classes, and are 0 or less for two.

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        dynamic: Whether the scale follows the angles.

    Attributes:
        scale: s, a buffer.
    """

    warms = frozenset()

    @checked("head")
    def __init__(
        self, *, embedding_dim: PositiveInt, num_classes: PositiveInt, dynamic: bool
    ) -> None:
        fixed = max(math.sqrt(2) * math.log(max(num_classes - 1, 1)), _LEAST)
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=fixed)
        self.dynamic = dynamic
        del self.scale  # a number until here, a buffer of the same name from here on
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(fixed))

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits, [B, C], after the dynamic scale has been adapted to them."""
        cos_BC = scaled_cosine(features_BD, self.weight, 1.0)
        if self.dynamic:
            self._adapt(cos_BC.detach(), labels_B)
        # A copy: the buffer may move on before this step's gradient is taken.
        return cos_BC.mul_(self.scale.clone())

    @torch.no_grad()
    def _adapt(self, cos_BC: Tensor, labels_B: Tensor) -> None:
        rows = max(1, _BLOCK // cos_BC.shape[1])
        blocks = zip(torch.split(cos_BC, rows), torch.split(labels_B, rows), strict=True)
        log_sum_B = torch.cat([_log_sum_of_others(*block, self.scale) for block in blocks])
        target_B = cos_BC.gather(1, labels_B[:, None])[:, 0]
        log_sum_N, target_N = gather_rows(torch.stack([log_sum_B, target_B], dim=1)).unbind(dim=1)
        log_mean = log_sum_N.logsumexp(dim=0) - math.log(len(log_sum_N))
        median = target_N.clamp(-1, 1).acos().median()
        self.scale.copy_((log_mean / median.clamp(max=math.pi / 4).cos()).clamp(min=_LEAST))


def _log_sum_of_others(cos_bC: Tensor, labels_b: Tensor, scale: Tensor) -> Tensor:
    """Logarithm of Σ exp(s·cos θ) over all classes but the target, [b]."""
    logits_bC = scale * cos_bC
    logits_bC.scatter_(1, labels_b[:, None], -torch.inf)
    return logits_bC.logsumexp(dim=1)

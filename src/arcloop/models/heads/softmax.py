"""Heads without a margin: softmax over scaled cosines, with a fixed or an adaptive scale.

Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, arXiv 1704.06369.
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

_MIN_SCALE = 1.0


class NormalizedSoftmax(CosineClassifier):
    """Every logit is s·cos θ, where s is a constant: the baseline for heads with a margin.

    Args:
        embedding_dim: D, number of features.
        num_classes: C.
        scale: s, the factor between cosines and logits.
    """

    warmable = frozenset({"scale"})

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits without margin, [B, C]."""
        return self.scaled_cosine(features_BD)


class AdaCos(CosineClassifier):
    """Every logit is s·cos θ, where s is computed from the number of classes and the angles.

    The fixed scale is √2·ln(C - 1) (section 4.1). The dynamic scale starts with this value. Every
    training step first sets it to ln(B) / cos(min(π/4, θ_med)) (section 4.2). B is the
    mean over the global batch of Σ exp(s·cos θ) over all classes except the target, with the s of
    the previous step, and θ_med is the median angle between a feature and its class. Both scales
    are at least 1, because the formulas give 0 or less for two classes.

    Args:
        embedding_dim: D, number of features.
        num_classes: C.
        dynamic: Whether to adapt the scale to the angles.

    Attributes:
        scale: s, a buffer.
    """

    warmable = frozenset()

    @checked("head")
    def __init__(
        self, *, embedding_dim: PositiveInt, num_classes: PositiveInt, dynamic: bool
    ) -> None:
        fixed = max(math.sqrt(2) * math.log(max(num_classes - 1, 1)), _MIN_SCALE)
        super().__init__(embedding_dim=embedding_dim, num_classes=num_classes, scale=fixed)
        self.dynamic = dynamic
        del self.scale  # replaces the number by a buffer of the same name
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(fixed))

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits, [B, C], computed after the update of a dynamic scale."""
        cos_BC = scaled_cosine(features_BD, self.weight, 1.0)
        if self.dynamic:
            self._update_scale(cos_BC.detach(), labels_B)
        # A copy, because the buffer may change before this step's backward pass.
        return cos_BC.mul_(self.scale.clone())

    @torch.no_grad()
    def _update_scale(self, cos_BC: Tensor, labels_B: Tensor) -> None:
        """Set the scale from the cosines of the global batch (section 4.2)."""
        logits_BC = self.scale * cos_BC
        logits_BC.scatter_(1, labels_B[:, None], -torch.inf)
        log_sum_B = logits_BC.logsumexp(dim=1)
        target_B = cos_BC.gather(1, labels_B[:, None])[:, 0]
        log_sum_N, target_N = gather_rows(torch.stack([log_sum_B, target_B], dim=1)).unbind(dim=1)
        log_mean = log_sum_N.logsumexp(dim=0) - math.log(len(log_sum_N))
        median = target_N.clamp(-1, 1).acos().median()
        scale = log_mean / median.clamp(max=math.pi / 4).cos()
        self.scale.copy_(scale.clamp(min=_MIN_SCALE))

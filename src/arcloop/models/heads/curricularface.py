"""CurricularFace: the weight of hard negatives grows during training.

Huang et al., CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition, arXiv
2004.00288.

Shapes: B batch, D embedding, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arcloop.config.value_types import Angle, Fraction, checked
from arcloop.distributed.collectives import gather_rows
from arcloop.models.heads.arcface import cos_with_margin
from arcloop.models.heads.cosine_classifier import CosineClassifier, scaled_cosine


class CurricularFace(CosineClassifier):
    """ArcFace that multiplies cos θ of hard negatives by t + cos θ (section 3).

    The target logit is s·T with T = cos(θ + m). The logit of another class is s·cos θ where
    cos θ <= T, and s·cos θ·(t + cos θ) where cos θ > T. t is the moving average of the targets'
    cosines over global batches. As in the authors' code, a training step updates it before use.

    Args:
        margin: m, additive angle in radians, in [0, π).
        momentum: Weight of the previous t in an update, in [0, 1]. (In the paper, α = 0.99 is the
            weight of the batch; in the authors' code it is the weight of the previous t.)
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.

    Attributes:
        t: The moving average, a buffer; 0 at the start.
    """

    t: Tensor

    @checked("head")
    def __init__(self, *, margin: Angle, momentum: Fraction, **shared: Any) -> None:
        super().__init__(**shared)
        self.margin, self.momentum = float(margin), float(momentum)
        self.register_buffer("t", torch.tensor(0.0))

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with margin and weighted negatives, [B, C], computed after the update of t."""
        cos_BC = scaled_cosine(features_BD, self.weight, 1.0)
        rows_B = torch.arange(len(labels_B), device=labels_B.device)
        target_B = cos_BC[rows_B, labels_B].clamp(-1, 1)
        moved_B = cos_with_margin(target_B, self.margin_factor * self.margin, easy_margin=False)
        mean = gather_rows(target_B.detach()).mean()
        self.t.lerp_(mean.to(self.t.dtype), 1 - self.momentum)
        # A copy, because the buffer may change before this step's backward pass.
        weighted_BC: Tensor = _WeightHardNegatives.apply(  # type: ignore[no-untyped-call]
            cos_BC, moved_B.detach()[:, None], self.t.clone()
        )
        logits_BC = weighted_BC.mul_(self.scale)
        logits_BC[rows_B, labels_B] = self.scale * moved_B
        return logits_BC


class _WeightHardNegatives(torch.autograd.Function):
    """cos·(t + cos) where cos > threshold. It stores two arrays; autograd would store four."""

    @staticmethod
    def forward(ctx: Any, cos_BC: Tensor, threshold_B1: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BC, threshold_B1, t)
        weighted_BC = (cos_BC + t).mul_(cos_BC)
        return torch.where(cos_BC > threshold_B1, weighted_BC, cos_BC, out=weighted_BC)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_BC, threshold_B1, t = ctx.saved_tensors
        grad_BC = (2 * cos_BC).add_(t).mul_(grads[0])
        torch.where(cos_BC > threshold_B1, grad_BC, grads[0], out=grad_BC)
        return grad_BC, None, None

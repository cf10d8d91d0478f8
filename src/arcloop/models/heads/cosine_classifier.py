"""Base classes of the heads, heads without a margin, and the operations on cosines they share.

Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, arXiv 1704.06369.
Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
Representations, arXiv 1905.00292.

Shapes: B batch, D embedding, C classes, M targets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import PositiveFloat, PositiveInt, checked
from arcloop.distributed.collectives import gather_rows

_MIN_SCALE = 1.0


class Head(nn.Module, ABC):
    """Training loss of the embedding, with its own parameters; not part of model.pt.

    Each training run constructs a head from `embedding_dim`, `num_classes` and the config. A head
    computes in float32 under any `trainer.precision`, or in float64 if the features are float64.
    State that a head keeps between batches is computed from the global batch, so it is equal on all
    processes, and is stored in buffers, so that checkpoints contain it.

    Attributes:
        warmable: Names of the values that `set_warmup` can change: "margin", "scale".
        norm_is_quality: Whether the loss makes the norm of a feature a measure of the quality of
            its image.
    """

    warmable: ClassVar[frozenset[str]] = frozenset()
    norm_is_quality: ClassVar[bool] = False

    @abstractmethod
    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Mean loss of a batch: with margin in training mode, without it in evaluation mode.

        Args:
            features_BD: Embeddings before normalisation, any floating type.
            labels_B: int64, in [0, number of classes).

        Returns:
            Scalar, float32 (float64 for float64 features).
        """

    def set_class_sizes(self, sizes_C: Tensor) -> None:
        """Set the number of training images of each class; most heads do not depend on it."""

    def class_vectors(self) -> Tensor | None:
        """Return one vector per class, [C, D]; None if the loss has no such vectors.

        A head whose classes are sharded returns those of this process.
        """
        return None

    def cautions(self) -> list[str]:
        """Sentences on values that are possible, but not advised by the authors of the loss."""
        return []


class CosineClassifier(Head):
    """Cross-entropy over the cosines of a feature with one vector per class.

    The cosines are computed in float32 or float64: with a scale of 64, the rounding of a bfloat16
    cosine changes a logit by 0.25.

    Args:
        embedding_dim: D, number of features.
        num_classes: C.
        scale: s, the factor between cosines and logits (the radius of the hypersphere), above 0.

    Attributes:
        scale: The current scale, see `set_warmup`.
        full_scale: The scale of the config.
        margin_factor: The current factor of the margin in [0, 1], see `set_warmup`.
    """

    warmable = frozenset({"margin", "scale"})
    scale: float | Tensor

    @checked("head")
    def __init__(
        self, *, embedding_dim: PositiveInt, num_classes: PositiveInt, scale: PositiveFloat
    ) -> None:
        super().__init__()
        self.scale = self.full_scale = float(scale)
        self.margin_factor = 1.0
        self.weight = self.make_weight(num_classes, embedding_dim)

    def make_weight(self, num_classes: int, embedding_dim: int) -> nn.Parameter:
        """Draw the class vectors, [C, D], from torch's global generator."""
        # The logits depend only on the direction. With a norm near 1, the effect of a learning rate
        # does not depend on D.
        return nn.Parameter(torch.randn(num_classes, embedding_dim) / embedding_dim**0.5)

    def class_vectors(self) -> Tensor:
        return self.weight

    def set_warmup(self, *, margin: float | None = None, scale: float | None = None) -> None:
        """Set the margin and the scale of the following forward passes; None changes nothing.

        Args:
            margin: Factor of the margin, in [0, 1].
            scale: The scale.
        """
        if margin is not None:
            self.margin_factor = margin
        if scale is not None:
            self.scale = scale

    def forward(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        if self.training:
            return F.cross_entropy(self.logits(features_BD, labels_B), labels_B)
        return F.cross_entropy(self.scaled_cosine(features_BD), labels_B)

    @abstractmethod
    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with margin, [B, C]."""

    def scaled_cosine(self, features_BD: Tensor) -> Tensor:
        """Cosine times scale, [B, C]: the logits without margin."""
        return scaled_cosine(features_BD, self.weight, self.scale)


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


class TargetMargin(CosineClassifier):
    """Base class of heads whose margin changes only the target logits.

    Args:
        embedding_dim: D, number of features.
        num_classes: C.
        scale: s, the factor between cosines and logits.
    """

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits with margin, [B, C]."""
        logits_BC = self.scaled_cosine(features_BD)
        change_targets(
            logits_BC, self.scale, labels_B, lambda cos_B: self.with_margin(cos_B, labels_B)
        )
        return logits_BC

    @abstractmethod
    def with_margin(self, cos_M: Tensor, labels_M: Tensor) -> Tensor:
        """Return the target logits divided by the scale.

        Args:
            cos_M: Cosines of the targets, in [-1, 1].
            labels_M: Classes of the targets.
        """


def change_targets(
    logits_BC: Tensor,
    scale: float | Tensor,
    column_M: Tensor,
    change: Callable[[Tensor], Tensor],
    row_M: Tensor | None = None,
) -> None:
    """Change the target logits in place; a copy of [B, C] logits is large with many classes.

    Args:
        logits_BC: Cosines times scale.
        scale: The scale.
        column_M: Columns of the targets.
        change: Maps the targets' cosines, [M], in [-1, 1], to their new values.
        row_M: Rows of the targets; None if every row has one target.
    """
    row_M = torch.arange(len(column_M), device=column_M.device) if row_M is None else row_M
    cos_M = (logits_BC[row_M, column_M] / scale).clamp(-1, 1)
    logits_BC[row_M, column_M] = scale * change(cos_M)


def scaled_cosine(features_BD: Tensor, weight_CD: Tensor, scale: float | Tensor) -> Tensor:
    """Cosine of every feature with every class vector, times scale, [B, C].

    The scale is applied to the features, which takes B·D multiplications instead of B·C.
    """
    device = features_BD.device.type
    autocast = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        unit_BD = F.normalize(to_float32(features_BD))
        return F.linear(scale * unit_BD, F.normalize(weight_CD.to(unit_BD.dtype)))


def feature_norms(features_BD: Tensor) -> Tensor:
    """L2 norm of each feature vector, [B], float32 (float64 for float64 features)."""
    norm_B: Tensor = torch.linalg.vector_norm(to_float32(features_BD), dim=1)
    return norm_B


def to_float32(features_BD: Tensor) -> Tensor:
    """Convert features to float32; float64 features are unchanged."""
    return features_BD.to(torch.promote_types(features_BD.dtype, torch.float32))

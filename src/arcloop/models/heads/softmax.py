"""Softmax over cosines without any margin: what margins are compared with.

Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification, arXiv 1704.06369.
"""

from __future__ import annotations

from torch import Tensor

from arcloop.models.heads.cosine_classifier import CosineClassifier


class NormalizedSoftmax(CosineClassifier):
    """Every logit is s·cos θ (with s chosen and not learned).

    Args:
        embedding_dim: D, length of a feature.
        num_classes: C.
        scale: s, the radius of the hypersphere.
    """

    warms = frozenset({"scale"})

    def logits(self, features_BD: Tensor, labels_B: Tensor) -> Tensor:
        """Logits, [B, C]; there is no margin."""
        return self.scaled_cosine(features_BD)

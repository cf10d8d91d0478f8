"""Heads: training losses that map features and labels to a scalar."""

from arcloop.models.heads.arcface import ArcFace, SubCenterArcFace, cos_with_margin
from arcloop.models.heads.combined_margin import CombinedMargin, CosFace
from arcloop.models.heads.cosine_classifier import CosineClassifier, Head
from arcloop.models.heads.curricularface import CurricularFace
from arcloop.models.heads.elasticface import ElasticArcFace, ElasticCosFace
from arcloop.models.heads.feature_norm_margins import AdaFace, MagFace
from arcloop.models.heads.pair_loss import PairLoss
from arcloop.models.heads.sharded_arcface import ShardedArcFace
from arcloop.models.heads.softmax import AdaCos, NormalizedSoftmax

__all__ = [
    "AdaCos", "AdaFace", "ArcFace", "CombinedMargin", "CosFace", "CosineClassifier",
    "CurricularFace", "ElasticArcFace", "ElasticCosFace", "Head", "MagFace", "NormalizedSoftmax",
    "PairLoss", "ShardedArcFace", "SubCenterArcFace", "cos_with_margin",
]  # fmt: skip

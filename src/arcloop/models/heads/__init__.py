"""Heads: each turns features and labels into the loss that shapes the embedding."""

from arcloop.models.heads.adacos import AdaCos
from arcloop.models.heads.adaface import AdaFace
from arcloop.models.heads.arcface import ArcFace, cos_with_margin
from arcloop.models.heads.combined_margin import CombinedMargin
from arcloop.models.heads.cosface import CosFace
from arcloop.models.heads.cosine_classifier import CosineClassifier
from arcloop.models.heads.curricularface import CurricularFace
from arcloop.models.heads.elasticface import ElasticArcFace, ElasticCosFace
from arcloop.models.heads.head import Head
from arcloop.models.heads.magface import MagFace
from arcloop.models.heads.pair_loss import PairLoss
from arcloop.models.heads.sharded_arcface import ShardedArcFace
from arcloop.models.heads.softmax import NormalizedSoftmax
from arcloop.models.heads.sub_center_arcface import SubCenterArcFace

__all__ = [
    "AdaCos", "AdaFace", "ArcFace", "CombinedMargin", "CosFace", "CosineClassifier",
    "CurricularFace", "ElasticArcFace", "ElasticCosFace", "Head", "MagFace", "NormalizedSoftmax",
    "PairLoss", "ShardedArcFace", "SubCenterArcFace", "cos_with_margin",
]  # fmt: skip

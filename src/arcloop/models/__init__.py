"""Backbones, heads, and the embedder that is scripted."""

from arcloop.models.convnet import ConvNet
from arcloop.models.embedder import Embedder
from arcloop.models.heads import (
    AdaCos,
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CosineClassifier,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    Head,
    MagFace,
    NormalizedSoftmax,
    PairLoss,
    ShardedArcFace,
    SubCenterArcFace,
)
from arcloop.models.iresnet import IResNet

__all__ = [
    "AdaCos", "AdaFace", "ArcFace", "CombinedMargin", "ConvNet", "CosFace", "CosineClassifier",
    "CurricularFace", "ElasticArcFace", "ElasticCosFace", "Embedder", "Head", "IResNet", "MagFace",
    "NormalizedSoftmax", "PairLoss", "ShardedArcFace", "SubCenterArcFace",
]  # fmt: skip

"""Backbones, heads, and the embedder that is scripted."""

from arcloop.models.backbone_weights import Comparison, compare, load_weights, read_weights
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
from arcloop.models.mobilefacenet import MobileFaceNet
from arcloop.models.timm_backbone import TimmBackbone

__all__ = [
    "AdaCos", "AdaFace", "ArcFace", "CombinedMargin", "Comparison", "ConvNet", "CosFace",
    "CosineClassifier", "CurricularFace", "ElasticArcFace", "ElasticCosFace", "Embedder", "Head",
    "IResNet", "MagFace", "MobileFaceNet", "NormalizedSoftmax", "PairLoss", "ShardedArcFace",
    "SubCenterArcFace", "TimmBackbone", "compare", "load_weights", "read_weights",
]  # fmt: skip

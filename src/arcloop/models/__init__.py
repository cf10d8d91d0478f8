"""Backbones, heads, and the embedder, which is exported as model.pt."""

from arcloop.models.backbones.convnet import ConvNet
from arcloop.models.backbones.insightface import IResNet, MobileFaceNet
from arcloop.models.backbones.lora import Lora
from arcloop.models.backbones.timm_backbone import TimmBackbone
from arcloop.models.backbones.weights import (
    WeightComparison,
    compare_weights,
    fit_weights,
    load_weights,
    read_weights,
)
from arcloop.models.embedder import Embedder
from arcloop.models.heads.adaptive_margins import AdaFace, CurricularFace, MagFace
from arcloop.models.heads.arcface import (
    ArcFace,
    CombinedMargin,
    CosFace,
    ElasticArcFace,
    ElasticCosFace,
    SubCenterArcFace,
)
from arcloop.models.heads.cosine_classifier import (
    AdaCos,
    CosineClassifier,
    Head,
    NormalizedSoftmax,
)
from arcloop.models.heads.pair_loss import PairLoss
from arcloop.models.heads.sharded_arcface import ShardedArcFace

__all__ = [
    "AdaCos", "AdaFace", "ArcFace", "CombinedMargin", "ConvNet", "CosFace", "CosineClassifier",
    "CurricularFace", "ElasticArcFace", "ElasticCosFace", "Embedder", "Head", "IResNet", "Lora",
    "MagFace", "MobileFaceNet", "NormalizedSoftmax", "PairLoss", "ShardedArcFace",
    "SubCenterArcFace", "TimmBackbone", "WeightComparison", "compare_weights", "fit_weights",
    "load_weights", "read_weights",
]  # fmt: skip

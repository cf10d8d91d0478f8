"""Backbones, margin heads, and the embedder that is scripted."""

from arcloop.models.backbone_weights import Comparison, compare, load_weights, read_weights
from arcloop.models.convnet import ConvNet
from arcloop.models.embedder import Embedder
from arcloop.models.heads import ArcFace, Head, ShardedArcFace
from arcloop.models.iresnet import IResNet
from arcloop.models.mobilefacenet import MobileFaceNet
from arcloop.models.timm_backbone import TimmBackbone

__all__ = [
    "ArcFace", "Comparison", "ConvNet", "Embedder", "Head", "IResNet", "MobileFaceNet",
    "ShardedArcFace", "TimmBackbone", "compare", "load_weights", "read_weights",
]  # fmt: skip

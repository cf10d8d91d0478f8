"""Backbones, margin heads, and the embedder that is scripted."""

from arcloop.models.convnet import ConvNet
from arcloop.models.embedder import Embedder
from arcloop.models.heads import ArcFace, Head, ShardedArcFace
from arcloop.models.iresnet import IResNet

__all__ = ["ArcFace", "ConvNet", "Embedder", "Head", "IResNet", "ShardedArcFace"]

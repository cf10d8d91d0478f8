"""Margin heads: each turns features and labels into the loss that shapes the embedding."""

from arcloop.models.heads.arcface import ArcFace, cos_with_margin
from arcloop.models.heads.head import Head
from arcloop.models.heads.sharded_arcface import ShardedArcFace

__all__ = ["ArcFace", "Head", "ShardedArcFace", "cos_with_margin"]

"""Heads for any training loop: losses that train embeddings, with their own parameters.

A head is a `torch.nn.Module` that maps embeddings before normalisation, [B, D], and labels, int64
[B], to the mean loss of the batch. Its parameters are trained together with those of the model. All
arguments of a constructor must be given; `create` takes those that are not given from the configs.
"""

from __future__ import annotations

from typing import Any

from arcloop.models import (
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

__all__ = [
    "AdaCos", "AdaFace", "ArcFace", "CombinedMargin", "CosFace", "CosineClassifier",
    "CurricularFace", "ElasticArcFace", "ElasticCosFace", "Head", "MagFace", "NormalizedSoftmax",
    "PairLoss", "ShardedArcFace", "SubCenterArcFace", "create",
]  # fmt: skip


def create(choice: str, *, embedding_dim: int, num_classes: int, **values: Any) -> Head:
    """Create a head from a choice of the config group `head`, of arcloop or of the project.

    Args:
        choice: E.g. "arcface"; see the page of all config groups.
        embedding_dim: D, number of features.
        num_classes: C; labels are in [0, C).
        **values: Arguments of the head that replace those of the choice.

    Raises:
        ConfigError: There is no such choice, or a value is out of range.

    >>> create("arcface", embedding_dim=8, num_classes=3, margin=0.5).margin
    0.5
    """
    from arcloop.config.composition import build, compose_unchecked  # imports Hydra
    from arcloop.config.project import project_of

    with project_of(()):
        make = build(compose_unchecked([f"head={choice}"], hydra=False), "head")
    head: Head = make(embedding_dim=embedding_dim, num_classes=num_classes, **values)
    return head

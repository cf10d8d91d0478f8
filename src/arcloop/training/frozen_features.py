"""Features of an embedder whose backbone is frozen, in a way that DDP can live with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from arcloop.models import Embedder


def frozen_features(embedder: Embedder, pixels_BCHW: Tensor) -> Tensor:
    """`embedder.features`, without a gradient for the backbone."""
    with torch.no_grad():
        map_BCHW = embedder.feature_map(pixels_BCHW)
    trained = [p for p in embedder.backbone.parameters() if p.requires_grad]
    joined: Tensor = _Join.apply(map_BCHW, *trained)  # type: ignore[no-untyped-call]
    return embedder.project(joined)


class _Join(torch.autograd.Function):
    """Gives parameters a gradient of 0: DDP waits for one of each parameter it knows."""

    @staticmethod
    def forward(ctx: Any, map_BCHW: Tensor, *parameters: nn.Parameter) -> Tensor:
        ctx.save_for_backward(*parameters)
        return map_BCHW.view_as(map_BCHW)

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(torch.zeros_like(p) for p in ctx.saved_tensors))

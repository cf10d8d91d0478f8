"""A small convolutional backbone for small images."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked


class ConvNet(nn.Module):
    """Stages of 3x3 convolutions, each stage on half the height and width of the one before.

    A stage widens, pools, and then refines: a convolution, max pooling, and `depth - 1` residual
    convolutions. Pooling comes before norm and activation, which then touch a quarter of the
    pixels: on small images the time goes into moving feature maps, not into products.

    Args:
        in_channels: Channels of the image.
        widths: Channels of each stage.
        depth: Convolutions in a stage.
    """

    @checked("backbone")
    def __init__(
        self, *, in_channels: PositiveInt, widths: list[PositiveInt], depth: PositiveInt
    ) -> None:
        super().__init__()
        stages = [
            nn.Sequential(
                _convolution(before, width),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                *(_Refinement(width) for _ in range(depth - 1)),
            )
            for before, width in pairwise([in_channels, *widths])
        ]
        self.stages = nn.Sequential(*stages)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, widths[-1], H / 2^stages, W / 2^stages], rounded down."""
        features_BCHW: Tensor = self.stages(x_BCHW)
        return features_BCHW


class _Refinement(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = _convolution(width, width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + F.relu(self.norm(self.convolution(x_BCHW)))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

"""A small convolutional backbone for small images."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked


class ConvNet(nn.Module):
    """Stages of 3x3 convolutions; each stage halves the height and width.

    A stage is a convolution, max pooling, batch norm, ReLU, and `depth - 1` residual convolutions.
    Pooling comes first, so that batch norm and ReLU process a quarter of the pixels.

    Args:
        in_channels: Channels of the image.
        widths: Output channels of each stage.
        depth: Number of convolutions in a stage.
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
                *(_ResidualConvolution(width) for _ in range(depth - 1)),
            )
            for before, width in pairwise([in_channels, *widths])
        ]
        self.stages = nn.Sequential(*stages)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, widths[-1], H / 2^stages, W / 2^stages], rounded down."""
        features_BCHW: Tensor = self.stages(x_BCHW)
        return features_BCHW


class _ResidualConvolution(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = _convolution(width, width)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + F.relu(self.norm(self.convolution(x_BCHW)))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

"""A small convolutional backbone for small images."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from arcloop.quantities import PositiveInt, check


class ConvNet(nn.Module):
    """Stages of `depth` 3x3 convolutions, each with batch norm and ReLU.

    A stage halves height and width in its first convolution, by its stride. That is cheaper than
    pooling after it: on one channel the time goes into moving feature maps, not into products.

    Args:
        in_channels: Channels of the image.
        widths: Channels of each stage.
        depth: Convolutions in a stage.
    """

    def __init__(
        self, *, in_channels: PositiveInt, widths: list[PositiveInt], depth: PositiveInt
    ) -> None:
        check(
            "backbone",
            in_channels=(in_channels, PositiveInt),
            widths=(widths, list[PositiveInt]),
            depth=(depth, PositiveInt),
        )
        super().__init__()
        stages = [
            nn.Sequential(
                _conv_norm_relu(before, width, stride=2),
                *(_conv_norm_relu(width, width, stride=1) for _ in range(depth - 1)),
            )
            for before, width in pairwise([in_channels, *widths])
        ]
        self.stages = nn.Sequential(*stages)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, widths[-1], H / 2^stages, W / 2^stages], rounded up."""
        features_BCHW: Tensor = self.stages(x_BCHW)
        return features_BCHW


def _conv_norm_relu(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )

"""MobileFaceNet, a small backbone for telephones and CPUs, as laid out in insightface.

Chen et al., MobileFaceNets (arXiv 1804.07573), with the widths and blocks of insightface's
`recognition/arcface_torch/backbones/mobilefacenet.py`. Its last layers (FC, BN) are the neck, which
is the embedder's.
"""

from __future__ import annotations

from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.errors import ConfigError

_GROUP = 64
_STRIDES = 4
"""Times the map is halved."""


class MobileFaceNet(nn.Module):
    """Inverted bottlenecks, and a depthwise convolution over the whole of the last map.

    That global convolution takes the place of average pooling: it learns how much each place of an
    aligned face counts. So the weights are of one image size.

    Args:
        in_channels: Channels of the image.
        image_size: (height, width) of the image.
        width: Channels of the first two stages, a multiple of 64; the last two have twice as many.
        blocks: Blocks in each of the four stages. [1, 4, 6, 2] and width 128 are insightface's
            `mbf`, [2, 8, 12, 4] and 256 its `mbf_large`.
        features: Channels of the result.
    """

    @checked("backbone")
    def __init__(
        self,
        *,
        in_channels: PositiveInt,
        image_size: tuple[PositiveInt, PositiveInt],
        width: PositiveInt,
        blocks: list[PositiveInt],
        features: PositiveInt,
    ) -> None:
        if len(blocks) != _STRIDES or width % _GROUP:
            raise ConfigError(
                f"backbone.blocks={list(blocks)} must have 4 entries, and backbone.width={width}"
                f" must be a multiple of {_GROUP}",
                remedy="change the values; published are width 128 and blocks [1, 4, 6, 2]",
            )
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(in_channels, width, kernel=3, stride=2),
            # A stage of one block is, in insightface, a convolution in 64 groups.
            _convolution(width, width, kernel=3, groups=_GROUP)
            if blocks[0] == 1
            else _stage(width, blocks[0], hidden=128),
        )
        self.stages = nn.Sequential(
            Bottleneck(width, width, hidden=128, stride=2),
            _stage(width, blocks[1], hidden=128),
            Bottleneck(width, 2 * width, hidden=256, stride=2),
            _stage(2 * width, blocks[2], hidden=256),
            Bottleneck(2 * width, 2 * width, hidden=512, stride=2),
            _stage(2 * width, blocks[3], hidden=256),
            _convolution(2 * width, features, kernel=1),
        )
        height, breadth = (-(-side // 2**_STRIDES) for side in image_size)
        self.whole = nn.Sequential(
            nn.Conv2d(features, features, (height, breadth), groups=features, bias=False),
            nn.BatchNorm2d(features),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, features, 1, 1]."""
        features_BCHW: Tensor = self.whole(self.stages(self.stem(x_BCHW)))
        return features_BCHW


class Bottleneck(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by its own 3x3, narrow by a 1x1.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        hidden: Channels between.
        stride: Of the 3x3 convolution; with stride 1 the input is added to the result.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, stride: int) -> None:
        super().__init__()
        self.adds = stride == 1
        self.layers = nn.Sequential(
            _convolution(inputs, hidden, kernel=1),
            _convolution(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.layers(x_BCHW)
        return x_BCHW + out_BCHW if self.adds else out_BCHW


def _stage(width: int, count: int, *, hidden: int) -> nn.Sequential:
    return nn.Sequential(*(Bottleneck(width, width, hidden=hidden, stride=1) for _ in range(count)))


def _convolution(
    inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(outputs),
        nn.PReLU(outputs),
    )

"""IResNet and MobileFaceNet, with the layers of insightface.

IResNet: He et al., Deep Residual Learning (arXiv 1512.03385), with the changes of section 3.1 of
the ArcFace paper (arXiv 1801.07698). MobileFaceNet: Chen et al., MobileFaceNets (arXiv 1804.07573).
The layers and widths are those of `iresnet.py` and `mobilefacenet.py` in insightface's
`recognition/arcface_torch/backbones`. The last layers there (BN, dropout, FC, BN) are the neck,
which is part of the embedder.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.errors import ConfigError

_NECK = ("bn2", "fc", "features")
_GROUP = 64
_STRIDES = 4
"""How often MobileFaceNet halves the height and width."""


class IResNet(nn.Sequential):
    """A stem, and one stage of residual blocks per entry of `layers`; each stage halves the map.

    The output is a feature map [B, widths[-1], H / 2^stages, W / 2^stages], rounded up. The modules
    have the names of insightface, so its weights need no conversion.

    Args:
        in_channels: Channels of the image.
        layers: Number of blocks in each stage: [2, 2, 2, 2] is IResNet-18, [3, 4, 6, 3] IResNet-34,
            [3, 4, 14, 3] IResNet-50.
        widths: Output channels of each stage.

    Raises:
        ConfigError: `layers` and `widths` differ in length, or are empty.
    """

    @checked("backbone")
    def __init__(
        self, *, in_channels: PositiveInt, layers: list[PositiveInt], widths: list[PositiveInt]
    ) -> None:
        if len(layers) != len(widths) or not layers:
            raise ConfigError(
                f"backbone.layers has {len(layers)} stages and backbone.widths {len(widths)}",
                remedy="give both the same number of entries, at least one",
            )
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        for stage, (count, width) in enumerate(zip(layers, widths, strict=True)):
            blocks = [Block(widths[max(stage - 1, 0)], width, stride=2)]
            blocks += [Block(width, width, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Remove the neck from weights of insightface's IResNet.

        Args:
            state: A state dict of insightface's IResNet, or of this class, which has no neck.

        Returns:
            A state dict of this class.
        """
        return {n: w for n, w in state.items() if n.partition(".")[0] not in _NECK}


class Block(nn.Module):
    """BN - conv - BN - PReLU - conv with stride - BN, added to the input.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the second convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW = self.prelu(self.bn2(self.conv1(self.bn1(x_BCHW))))
        sum_BCHW: Tensor = self.bn3(self.conv2(out_BCHW)) + self.downsample(x_BCHW)
        return sum_BCHW


class MobileFaceNet(nn.Module):
    """Inverted bottlenecks, and a depthwise convolution over the whole last feature map.

    The global convolution replaces average pooling: it learns a weight for each position of an
    aligned face. Therefore the weights fit only one image size.

    Args:
        in_channels: Channels of the image.
        image_size: (height, width) of the image.
        width: Channels of the first two stages, a multiple of 64; the last two have 2·width.
        blocks: Number of blocks in each of the four stages. [1, 4, 6, 2] with width 128 is `mbf` of
            insightface, [2, 8, 12, 4] with width 256 is `mbf_large`.
        features: Output channels.

    Raises:
        ConfigError: `blocks` does not have four entries, or `width` is not a multiple of 64.
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
                remedy="change the values; insightface has width 128 and blocks [1, 4, 6, 2]",
            )
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(in_channels, width, kernel=3, stride=2),
            # In insightface a first stage of one block is a convolution in 64 groups.
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
    """A 1x1 convolution, a depthwise 3x3 convolution, and a linear 1x1 convolution.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        hidden: Channels of the depthwise convolution.
        stride: Stride of the 3x3 convolution; with stride 1 the input is added to the output.
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

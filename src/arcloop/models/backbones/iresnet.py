"""IResNet, the residual backbone of the ArcFace paper, with the layers of insightface.

He et al., Deep Residual Learning (arXiv 1512.03385), with the changes of section 3.1 of the ArcFace
paper (arXiv 1801.07698) and insightface's `recognition/arcface_torch/backbones/iresnet.py`. Its
last layers (BN, dropout, FC, BN) are the neck, which is part of the embedder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.errors import ConfigError


class IResNet(nn.Module):
    """A stem, and one stage of residual blocks per entry of `layers`; each stage halves the map.

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
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        )
        stages = [
            nn.Sequential(
                Block(before, width, stride=2),
                *(Block(width, width, stride=1) for _ in range(count - 1)),
            )
            for count, (before, width) in zip(layers, pairwise([widths[0], *widths]), strict=True)
        ]
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, widths[-1], H / 2^stages, W / 2^stages], rounded up."""
        features_BCHW: Tensor = self.stages(self.stem(x_BCHW))
        return features_BCHW

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert weights of insightface's IResNet.

        Args:
            state: A state dict of insightface's IResNet, from which the neck is removed, or of this
                class, which is returned unchanged.

        Returns:
            A state dict of this class.
        """
        if "conv1.weight" not in state:
            return dict(state)
        named = {_translate_name(name): value for name, value in state.items()}
        return {name: value for name, value in named.items() if name is not None}


class Block(nn.Module):
    """BN - conv - BN - PReLU - conv with stride - BN, added to the input.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Stride of the second convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.residual(x_BCHW) + self.shortcut(x_BCHW)
        return out_BCHW


_STEM = {"conv1": 0, "bn1": 1, "prelu": 2}
_RESIDUAL = {"bn1": 0, "conv1": 1, "bn2": 2, "prelu": 3, "conv2": 4, "bn3": 5}
_NECK = ("bn2", "fc", "features")


def _translate_name(name: str) -> str | None:
    """Return the name in `IResNet` of a tensor of insightface, or None if it is in the neck."""
    if found := re.fullmatch(r"layer(\d+)\.(\d+)\.downsample\.(.+)", name):
        return f"stages.{int(found[1]) - 1}.{found[2]}.shortcut.{found[3]}"
    if found := re.fullmatch(r"layer(\d+)\.(\d+)\.(\w+)\.(\w+)", name):
        index = _RESIDUAL.get(found[3], found[3])
        return f"stages.{int(found[1]) - 1}.{found[2]}.residual.{index}.{found[4]}"
    layer, _, tensor = name.partition(".")
    if layer in _NECK:
        return None
    return f"stem.{_STEM[layer]}.{tensor}" if layer in _STEM else name

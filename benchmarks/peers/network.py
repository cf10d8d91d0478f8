"""Networks of the comparisons: that of the classic example, and that of the image sets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class TwoConvolutions(nn.Module):
    """conv32 - BN - ReLU - pool, conv64 - BN - ReLU, FC 7744 -> 128 - BN - ReLU, for 28x28 pixels.

    The embedder's neck adds the last FC 128 -> 128, and a BN on both of its sides.

    Args:
        in_channels: Channels of the image.
    """

    def __init__(self, *, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(7744, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (128, 1, 1)),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, 128, 1, 1]."""
        features: Tensor = self.layers(x_BCHW)
        return features


class Stages(nn.Module):
    """`ConvNet` of arcloop with two convolutions a stage and its neck, without arcloop.

    Args:
        widths: Channels of each stage.
        image_size: Height and width of the RGB images, in pixels.
        embedding_dim: Length D of the embeddings.
    """

    def __init__(self, widths: list[int], image_size: int, embedding_dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise([3, *widths]):
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                _Residual(width),
            ]
        side = image_size // 2 ** len(widths)
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), nn.Flatten())
        self.project = nn.Linear(widths[-1] * side * side, embedding_dim)
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.norm.weight.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Embeddings before normalisation, [B, D]."""
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        features_BD: Tensor = self.norm(self.project(self.layers(x_BCHW)))
        return features_BD


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + nn.functional.relu(self.norm(self.convolution(x_BCHW)))

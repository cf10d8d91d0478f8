"""The network of the classic example as a backbone, without its last layer."""

from __future__ import annotations

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

"""Base class of augmentations, and their combination.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Augmentation(nn.Module, ABC):
    """Base class of augmentations; all random numbers come from the given generator."""

    @abstractmethod
    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            pixels_BCHW: Floating point, in [0, 255].
            generator: On any device; the random numbers do not depend on the device of the batch.

        Returns:
            Tensor of the same shape, type, device and range.
        """


class NoAugmentation(Augmentation):
    """Returns the batch unchanged."""

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        return pixels_BCHW


class Chain(Augmentation):
    """Applies several augmentations, in the order of the config.

    Args:
        steps: Name -> augmentation; None leaves one out.
    """

    def __init__(self, **steps: Augmentation | None) -> None:
        super().__init__()
        self.steps = nn.ModuleList(step for step in steps.values() if step is not None)

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        for step in self.steps:
            pixels_BCHW = step(pixels_BCHW, generator)
        return pixels_BCHW

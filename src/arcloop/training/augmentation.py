"""Augmentation of batches on their device, after loading and before normalisation.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import Fraction, NonNegativeFloat, checked


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


class RandomAffine(Augmentation):
    """Shifts, scales and rotates each image about its centre, bilinear, with a black background.

    Args:
        shift: Largest shift in each direction, as a share of height and width, in [0, 1].
        scale: Largest change of size; 0.1 draws factors from 1 / 1.1 to 1.1.
        rotate_degrees: Largest angle to either side, in degrees.
    """

    @checked("augmentation")
    def __init__(
        self, *, shift: Fraction, scale: NonNegativeFloat, rotate_degrees: NonNegativeFloat
    ) -> None:
        super().__init__()
        self.shift, self.scale = float(shift), float(scale)
        self.rotate_degrees = float(rotate_degrees)

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(4, len(pixels_BCHW), 1, 1, generator=generator, device=generator.device)
        right, down, turn, grow = (2 * draws - 1).to(pixels_BCHW)
        angle = math.radians(self.rotate_degrees) * turn
        size = (grow * math.log1p(self.scale)).exp()
        return warp(
            pixels_BCHW, angle=angle, size=size, right=self.shift * right, down=self.shift * down
        )


def warp(
    pixels_BCHW: Tensor, *, angle: Tensor, size: Tensor, right: Tensor, down: Tensor
) -> Tensor:
    """Rotate and scale each image about its centre, then shift it.

    Args:
        pixels_BCHW: Floating point.
        angle: Clockwise, in radians, [B, 1, 1].
        size: Factor of the content's size, [B, 1, 1].
        right: Shift as a share of the width, [B, 1, 1].
        down: Shift as a share of the height, [B, 1, 1].

    Returns:
        Tensor of the same shape, bilinear, 0 outside the image.
    """
    height, width = pixels_BCHW.shape[-2:]
    aspect = width / height
    # The inverse transform maps each output pixel to its source. The edges of an image are -1 and
    # 1 on both axes, independent of its aspect ratio.
    x_B1W = _centres(width, pixels_BCHW) - 2 * right
    y_BH1 = _centres(height, pixels_BCHW).unsqueeze(1) - 2 * down
    cos, sin = angle.cos() / size, angle.sin() / size
    from_x_BHW = cos * x_B1W + sin / aspect * y_BH1
    from_y_BHW = cos * y_BH1 - sin * aspect * x_B1W
    grid_BHW2 = torch.stack([from_x_BHW, from_y_BHW], dim=-1)
    return F.grid_sample(pixels_BCHW, grid_BHW2, padding_mode="zeros", align_corners=False)


def _centres(count: int, like: Tensor) -> Tensor:
    """Return the centres of `count` pixels between the edges -1 and 1."""
    steps = torch.arange(count, dtype=like.dtype, device=like.device)
    return (2 * steps + 1) / count - 1

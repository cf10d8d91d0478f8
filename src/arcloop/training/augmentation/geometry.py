"""Augmentations that move the pixels of images.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from arcloop.config.value_types import Fraction, NonNegativeFloat, checked
from arcloop.training.augmentation.base import Augmentation

Outside = Literal["black", "border"]


class RandomAffine(Augmentation):
    """Shifts, scales and rotates each image about its centre, with bilinear interpolation.

    Args:
        shift: Largest shift in each direction, as a fraction of height and width, in [0, 1].
        scale: Largest change of size; 0.1 draws factors from 1 / 1.1 to 1.1.
        rotate_degrees: Largest rotation in either direction, in degrees.
        outside: Fill outside of the image: "black", or "border" to repeat its outermost pixels.
    """

    @checked("augmentation")
    def __init__(
        self,
        *,
        shift: Fraction,
        scale: NonNegativeFloat,
        rotate_degrees: NonNegativeFloat,
        outside: Outside,
    ) -> None:
        super().__init__()
        self.outside: Outside = outside
        self.shift, self.scale = float(shift), float(scale)
        self.rotate_degrees = float(rotate_degrees)

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(4, len(pixels_BCHW), 1, 1, generator=generator, device=generator.device)
        right, down, turn, grow = (2 * draws - 1).to(pixels_BCHW)
        angle = math.radians(self.rotate_degrees) * turn
        size = (grow * math.log1p(self.scale)).exp()
        return warp(
            pixels_BCHW, angle=angle, size=size, right=self.shift * right, down=self.shift * down,
            outside=self.outside,
        )  # fmt: skip


class RandomResizedCrop(Augmentation):
    """Crops a random part of each image and resizes it to the size of the image, with flip.

    Combines `RandomResizedCrop` and `RandomHorizontalFlip` of torchvision with a rotation about the
    centre of the part, in one bilinear interpolation.

    Args:
        min_area: Smallest area of the part, as a fraction of the image, in (0, 1].
        max_ratio: Largest change of the aspect ratio; 1.33 draws factors from 1 / 1.33 to 1.33.
        flip: Probability of a horizontal flip.
        rotate_degrees: Largest rotation in either direction, in degrees.
        outside: Fill outside of the image: "black", or "border" to repeat its outermost pixels.
    """

    @checked("augmentation")
    def __init__(
        self,
        *,
        min_area: Annotated[float, Field(gt=0, le=1)],
        max_ratio: Annotated[float, Field(ge=1)],
        flip: Fraction,
        rotate_degrees: NonNegativeFloat,
        outside: Outside,
    ) -> None:
        super().__init__()
        self.min_area, self.max_ratio = float(min_area), float(max_ratio)
        self.flip, self.rotate_degrees = float(flip), float(rotate_degrees)
        self.outside: Outside = outside

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(6, len(pixels_BCHW), 1, 1, generator=generator, device=generator.device)
        area, ratio, across, along, mirror, turn = draws.to(pixels_BCHW)
        area = self.min_area + (1 - self.min_area) * area
        ratio = ((2 * ratio - 1) * math.log(self.max_ratio)).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x_B1W = width * _centres(pixels_BCHW.shape[-1], pixels_BCHW)
        x_B1W = torch.where(mirror < self.flip, -x_B1W, x_B1W)
        y_BH1 = height * _centres(pixels_BCHW.shape[-2], pixels_BCHW).unsqueeze(1)
        angle = math.radians(self.rotate_degrees) * (2 * turn - 1)
        middle = (1 - width) * (2 * across - 1), (1 - height) * (2 * along - 1)
        return _sample(pixels_BCHW, x_B1W, y_BH1, angle.cos(), angle.sin(), middle, self.outside)


def warp(
    pixels_BCHW: Tensor,
    *,
    angle: Tensor,
    size: Tensor,
    right: Tensor,
    down: Tensor,
    outside: Outside = "black",
) -> Tensor:
    """Rotate and scale each image about its centre, then shift it.

    Args:
        pixels_BCHW: Floating point.
        angle: Clockwise, in radians, [B, 1, 1].
        size: Scale factor, [B, 1, 1].
        right: Shift to the right as a fraction of the width, [B, 1, 1].
        down: Shift downwards as a fraction of the height, [B, 1, 1].
        outside: Fill outside of the image, see `RandomAffine`.

    Returns:
        Tensor of the same shape, interpolated bilinearly.
    """
    height, width = pixels_BCHW.shape[-2:]
    x_B1W = _centres(width, pixels_BCHW) - 2 * right
    y_BH1 = _centres(height, pixels_BCHW).unsqueeze(1) - 2 * down
    cos, sin = angle.cos() / size, angle.sin() / size
    return _sample(pixels_BCHW, x_B1W, y_BH1, cos, sin, (0, 0), outside)


def _sample(
    pixels_BCHW: Tensor,
    x_B1W: Tensor,
    y_BH1: Tensor,
    cos: Tensor,
    sin: Tensor,
    middle: tuple[Tensor | int, Tensor | int],
    outside: Outside,
) -> Tensor:
    """Sample each output pixel at its coordinates, rotated and then shifted by `middle`.

    The edges of an image are -1 and 1 on both axes, independent of its aspect ratio.
    """
    aspect = pixels_BCHW.shape[-1] / pixels_BCHW.shape[-2]
    from_x_BHW = cos * x_B1W + sin / aspect * y_BH1 + middle[0]
    from_y_BHW = cos * y_BH1 - sin * aspect * x_B1W + middle[1]
    grid_BHW2 = torch.stack([from_x_BHW, from_y_BHW], dim=-1)
    padding = "zeros" if outside == "black" else "border"
    return F.grid_sample(pixels_BCHW, grid_BHW2, padding_mode=padding, align_corners=False)


def _centres(count: int, like: Tensor) -> Tensor:
    """Return the centres of `count` pixels between the edges -1 and 1."""
    steps = torch.arange(count, dtype=like.dtype, device=like.device)
    return (2 * steps + 1) / count - 1

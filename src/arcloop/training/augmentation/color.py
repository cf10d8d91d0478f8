"""Augmentations that change the values of pixels and not their positions.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from arcloop.config.value_types import Fraction, checked
from arcloop.training.augmentation.base import Augmentation

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue of each image, in this order.

    The first three are factors as in torchvision's `ColorJitter`. The hue is changed by a rotation
    in the YIQ colour space, which is one matrix product and keeps the luma; torchvision converts to
    HSV. Grey images have no saturation and hue.

    Args:
        brightness: Largest change; 0.2 draws factors from 0.8 to 1.2.
        contrast: Largest change of the distance from the mean luma of the image.
        saturation: Largest change of the distance from the grey image.
        hue: Largest rotation in either direction, as a fraction of a full turn, in [0, 0.5].
    """

    @checked("augmentation")
    def __init__(
        self,
        *,
        brightness: Fraction,
        contrast: Fraction,
        saturation: Fraction,
        hue: Annotated[float, Field(ge=0, le=0.5)],
    ) -> None:
        super().__init__()
        self.brightness, self.contrast = float(brightness), float(contrast)
        self.saturation, self.hue = float(saturation), float(hue)

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        shape = (4, len(pixels_BCHW), 1, 1, 1)
        draws = 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
        brightness, contrast, saturation, hue = draws.to(pixels_BCHW)
        x_BCHW = pixels_BCHW * (1 + self.brightness * brightness)
        mean_B111 = _luma(x_BCHW).mean((2, 3), keepdim=True)
        x_BCHW = torch.lerp(mean_B111, x_BCHW, 1 + self.contrast * contrast)
        if x_BCHW.shape[1] == 3:
            x_BCHW = torch.lerp(_luma(x_BCHW), x_BCHW, 1 + self.saturation * saturation)
            if self.hue:
                turn_B33 = _hue_matrix(2 * math.pi * self.hue * hue.flatten())
                x_BCHW = torch.einsum("bij,bjhw->bihw", turn_B33, x_BCHW)
        return x_BCHW.clamp(0, 255)


class RandomErasing(Augmentation):
    """Replaces a random rectangle of some images by their mean colour (arXiv 1708.04896).

    Args:
        probability: Probability that an image is changed.
        min_area: Smallest area of the rectangle, as a fraction of the image.
        max_area: Largest area of the rectangle.
        max_ratio: Largest aspect ratio of the rectangle, relative to that of the image; the
            smallest is its inverse.
    """

    @checked("augmentation")
    def __init__(
        self,
        *,
        probability: Fraction,
        min_area: Fraction,
        max_area: Fraction,
        max_ratio: Annotated[float, Field(ge=1)],
    ) -> None:
        super().__init__()
        self.probability = float(probability)
        self.min_area, self.max_area = sorted((float(min_area), float(max_area)))
        self.max_ratio = float(max_ratio)

    def forward(self, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        count, _, rows, columns = pixels_BCHW.shape
        draws = torch.rand(5, count, 1, 1, 1, generator=generator, device=generator.device)
        chosen, area, ratio, across, along = draws.to(pixels_BCHW)
        area = self.min_area + (self.max_area - self.min_area) * area
        ratio = ((2 * ratio - 1) * math.log(self.max_ratio)).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        left, top = (1 - width) * across, (1 - height) * along
        x_W = (torch.arange(columns, device=pixels_BCHW.device) + 0.5) / columns
        y_H1 = (torch.arange(rows, device=pixels_BCHW.device).unsqueeze(1) + 0.5) / rows
        is_erased_B1HW = (x_W >= left) & (x_W < left + width) & (chosen < self.probability)
        is_erased_B1HW = is_erased_B1HW & (y_H1 >= top) & (y_H1 < top + height)
        return torch.where(is_erased_B1HW, pixels_BCHW.mean((2, 3), keepdim=True), pixels_BCHW)


def _luma(pixels_BCHW: Tensor) -> Tensor:
    """Return the luma [B, 1, H, W] of RGB or grey images."""
    if pixels_BCHW.shape[1] == 1:
        return pixels_BCHW
    weights_C11 = pixels_BCHW.new_tensor(_LUMA).view(-1, 1, 1)
    return (pixels_BCHW * weights_C11).sum(1, keepdim=True)


def _hue_matrix(angle_B: Tensor) -> Tensor:
    """Return the matrix [B, 3, 3] that rotates the chroma of RGB values by an angle in radians."""
    to_yiq = torch.tensor(_TO_YIQ, dtype=torch.float64)
    to_rgb = torch.linalg.inv(to_yiq).to(angle_B)
    cos, sin, zero = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    rows = [(zero + 1, zero, zero), (zero, cos, -sin), (zero, sin, cos)]
    turn_B33 = torch.stack([torch.stack(row, -1) for row in rows], -2)
    matrix_B33: Tensor = to_rgb @ turn_B33 @ to_yiq.to(angle_B)
    return matrix_B33

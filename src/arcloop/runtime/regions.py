"""Parts of image files that become images: boxes, and faces that are aligned by their landmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

BOX = ("x_1", "y_1", "x_2", "y_2")
LANDMARKS = (
    "lefteye_x", "lefteye_y", "righteye_x", "righteye_y", "nose_x", "nose_y",
    "leftmouth_x", "leftmouth_y", "rightmouth_x", "rightmouth_y",
)  # fmt: skip
"""Names of CelebA; left is the left side of the picture."""
COLUMNS = BOX + LANDMARKS

_TEMPLATE_SIDE = 112
_TEMPLATE = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j,
     70.7299 + 92.2041j]
)  # fmt: skip
"""Landmarks in the template of ArcFace, x + iy, in pixels whose centres are integers."""
_CENTRE = 0.5 + 0.5j  # of the first pixel, in the coordinates of Pillow


@dataclass(frozen=True)
class Region:
    """Part of an image file, in pixels of the image after its EXIF orientation is applied.

    Attributes:
        box: x_1, y_1, x_2 and y_2; the pixels at x_2 and y_2 are outside.
        landmarks: x and y of the five points of a face, see `LANDMARKS`. If they are given, the
            face is aligned, and the box is not used.
    """

    box: tuple[int, ...] | None = None
    landmarks: tuple[float, ...] | None = None

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Region | None:
        """Make a region from the values of `COLUMNS`, NaN if not given; None if all are NaN."""
        box, landmarks = values[: len(BOX)], values[len(BOX) :]
        has_box, has_landmarks = not math.isnan(box[0]), not math.isnan(landmarks[0])
        if not has_box and not has_landmarks:
            return None
        return cls(
            tuple(map(round, box)) if has_box else None,
            tuple(landmarks) if has_landmarks else None,
        )

    def __str__(self) -> str:
        if self.landmarks is None:
            return f"box={','.join(map(str, self.box or ()))}"
        return f"landmarks={','.join(f'{value:.1f}' for value in self.landmarks)}"

    def find_fault(self, size: tuple[int, int]) -> str:
        """Describe how the box exceeds an image of this width and height; empty if it does not."""
        ends = zip(BOX[2:], (self.box or ())[2:], size, ("wide", "high"), strict=False)
        faults = [f"{name}={end}, but the image is {pixels} pixels {axis}"
                  for name, end, pixels, axis in ends if end > pixels]  # fmt: skip
        return "; ".join(faults)

    def crop(self, image: Image.Image) -> Image.Image:
        """Cut out the box; return the whole image if there are landmarks or no box."""
        if self.box is None or self.landmarks is not None:
            return image
        left, top, right, bottom = self.box
        return image.crop((left, top, right, bottom))

    def align(
        self, image: Image.Image, size: tuple[int, int], colour: tuple[int, int, int]
    ) -> Image.Image:
        """Move the landmarks to those of the ArcFace template of 112 x 112 pixels.

        The template is scaled to the height of the result, and centred. The similarity transform is
        the one of Umeyama (1991), without reflection. Large faces are reduced first, to avoid
        aliasing.

        Args:
            image: The whole image, of mode L or RGB.
            size: Width and height of the result.
            colour: RGB colour of the area outside the image.
        """
        assert self.landmarks is not None
        width, height = size
        targets = _TEMPLATE * (height / _TEMPLATE_SIDE) + (width - height) / 2
        points = np.array(self.landmarks).reshape(-1, 2) @ [1, 1j]
        centred = points - points.mean()
        # In complex numbers, a similarity transform is a * z + b, and least squares give a and b.
        scaling = np.vdot(centred, targets) / np.vdot(centred, centred)
        offset = targets.mean() - scaling * points.mean()
        inverse = 1 / scaling
        start = _CENTRE - (_CENTRE + offset) * inverse
        factor = max(1, int(abs(inverse)))
        a, b, c, d = np.array([inverse.real, inverse.imag, start.real, start.imag]) / factor
        fill = Image.new("RGB", (1, 1), colour).convert(image.mode).getpixel((0, 0))
        return (image.reduce(factor) if factor > 1 else image).transform(
            size, Image.Transform.AFFINE, (a, -b, c, b, a, d), Image.Resampling.BILINEAR,
            fillcolor=fill,
        )  # fmt: skip

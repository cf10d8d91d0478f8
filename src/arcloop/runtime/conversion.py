"""Converts images to uint8 arrays of the size and mode of a model; `images` decodes files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .regions import Region

MAX_VALUE = 65535


class ImageError(ValueError):
    """The bytes cannot be decoded as an image; the message has the reason."""


@dataclass(frozen=True)
class Conversion:
    """How images are converted to the size and mode of a model, which stores and models record.

    Attributes:
        max_value: In grey images of more than 8 bits, this value and all larger ones become 255.
        background: Colour of transparent parts, and of the border that `resize="pad"` adds:
            "black", "white", "mean" for the mean colour of the opaque parts of the image, or RGB
            values in 0..255.
        resize: "stretch" changes the aspect ratio. "pad" keeps it and adds a border. "crop" keeps
            it and cuts off what exceeds the target on both sides.
    """

    max_value: int = MAX_VALUE
    background: str | Sequence[int] = "black"
    resize: Literal["stretch", "pad", "crop"] = "stretch"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a conversion; missing values have the defaults, and other keys are ignored.

        >>> Conversion.from_dict({"resize": "pad", "image_shape": [8, 8, 3]}).resize
        'pad'
        """
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def as_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return asdict(self)

    def colour(self, image: Image.Image) -> tuple[int, int, int]:
        """Return the background of an image of mode L, RGB or RGBA."""
        if self.background == "mean":
            pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4).astype(np.float64)
            weights = pixels[:, 3:]
            mean = (pixels[:, :3] * weights).sum(0) / max(weights.sum(), 1.0)
            red, green, blue = mean.round().astype(int).tolist()
        elif isinstance(self.background, str):
            red, green, blue = _COLOURS[self.background]
        else:
            red, green, blue = self.background
        return red, green, blue


_COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255)}
DEFAULT_CONVERSION = Conversion()


def convert(
    image: Image.Image,
    *,
    height: int,
    width: int,
    channels: int,
    conversion: Conversion = DEFAULT_CONVERSION,
    region: Region | None = None,
) -> tuple[npt.NDArray[np.uint8], bool]:
    """Convert a decoded image to a given size and number of channels; see `images.decode`.

    Args:
        image: An image of any mode and size, upright, cut to `region`. It is not changed.
        height: Rows of the result, in pixels.
        width: Columns of the result, in pixels.
        channels: 1 for grey, 3 for RGB.
        conversion: How size, mode and range of values are converted.
        region: The part of the image that was cut out, which may be aligned by landmarks.

    Returns:
        uint8 array of shape [height, width, channels], and whether the image has transparent parts.

    Raises:
        ImageError: Its values are outside the range of 16 bits, or floating-point numbers.
    """
    image = _to_8_bits(image, conversion.max_value)
    colour = None
    is_transparent = image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255)
    if is_transparent:
        colour = conversion.colour(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*colour, 255)), image)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if region is not None and region.landmarks is not None:
        image = region.align(image, (width, height), colour or conversion.colour(image))
    elif image.size != (width, height):
        image = _resize(image, (width, height), conversion, colour)
    pixels = bytearray(image.tobytes())  # writable, unlike bytes
    return np.frombuffer(pixels, np.uint8).reshape(height, width, channels), is_transparent


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    conversion: Conversion,
    colour: tuple[int, int, int] | None,
) -> Image.Image:
    """Resize an image of mode L or RGB to (width, height); see `Conversion.resize`.

    Args:
        image: The image, without transparent parts.
        size: Width and height of the result.
        conversion: The way to resize.
        colour: The background that replaced transparent parts, if there were any.
    """
    if conversion.resize == "stretch":
        return image.resize(size, Image.Resampling.BILINEAR)
    if conversion.resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    border = Image.new("RGB", size, colour or conversion.colour(image)).convert(image.mode)
    inner = ImageOps.contain(image, size, Image.Resampling.BILINEAR)
    border.paste(inner, ((size[0] - inner.width) // 2, (size[1] - inner.height) // 2))
    return border


def _to_8_bits(image: Image.Image, max_value: int) -> Image.Image:
    """Convert an image to 8 bits per value; one with an alpha channel to mode RGBA."""
    if image.mode == "F":
        raise ImageError("its pixels are floating-point numbers, whose range is unknown")
    if image.mode.startswith("I"):
        # PIL clips 16-bit values to 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > MAX_VALUE:
            raise ImageError(f"its values, {values.min()} to {values.max()}, exceed 16 bits")
        image = Image.fromarray((values.clip(0, max_value) * 255 // max_value).astype(np.uint8))
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    return image

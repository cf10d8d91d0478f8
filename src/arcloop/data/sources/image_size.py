"""The `image_size` setting: one number for a square, or height and width."""

from __future__ import annotations

from collections.abc import Sequence

from arcloop.errors import ConfigError


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) in pixels.

    Raises:
        ConfigError: A list of other than two numbers.

    >>> height_and_width(28), height_and_width([32, 64])
    ((28, 28), (32, 64))
    """
    if isinstance(image_size, int):
        return image_size, image_size
    if len(image_size) != 2:
        raise ConfigError(
            f"data.image_size={list(image_size)} must be one number or [height, width]",
            remedy="change the value",
        )
    height, width = image_size
    return height, width

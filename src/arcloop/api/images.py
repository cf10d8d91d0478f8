"""Reads the images that a caller passes, in batches, with the decoder of the servers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import joblib
import numpy as np
import numpy.typing as npt
from PIL import Image

from arcloop.errors import DataError
from arcloop.runtime.images import ImageError, convert_image

if TYPE_CHECKING:
    from arcloop.runtime.searcher import Model

Pixels = npt.NDArray[np.uint8]
ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | Pixels
"""A path, an encoded image, an image of Pillow, or uint8 [H, W] or [H, W, C] of any size."""
Images: TypeAlias = ImageLike | Iterable[ImageLike]

_BATCH_BYTES, _BATCH_ROWS = 64 * 2**20, 512
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_KINDS = "a path, bytes, an image of Pillow, or a uint8 array [H, W, C] with C = 1, 3 or 4"


def read_batches(images: Images, model: Model) -> Iterator[Pixels]:
    """Decode images in batches of at most 64 MiB, on all cores, which hold one image each.

    Args:
        images: One image or any iterable of images; an array [N, H, W, C] is N images.
        model: Its image shape and conversion are those of the result.

    Yields:
        uint8 [n, H, W, C] of the model's shape.

    Raises:
        DataError: An element is not an image. The message says which.
    """
    is_one, several = _is_one(images), cast("Iterable[ImageLike]", images)
    numbered = enumerate([images] if is_one else several)
    height, width, channels = model.image_shape
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // (height * width * channels)))

    def read(number_and_image: tuple[int, Any]) -> Pixels:
        number, image = number_and_image
        try:
            return _read(image, model)
        except ImageError as cause:
            is_file = isinstance(image, str | os.PathLike)
            names = [] if is_one else [f"images[{number}]"]
            names += [os.fsdecode(image)] if is_file else []
            raise DataError(
                str(cause), where=": ".join(names) or "the image", remedy=f"pass {_KINDS}"
            ) from None

    threads, decoded = joblib.cpu_count(), list[Pixels]()
    with ThreadPoolExecutor(threads) as pool:
        # A few at a time, because the images of Pillow are much larger than the decoded ones.
        while part := list(itertools.islice(numbered, min(threads, rows - len(decoded)))):
            # Two threads must not load the same image of Pillow at once.
            is_distinct = len({id(image) for _, image in part}) == len(part)
            decoded += (pool.map if is_distinct else map)(read, part)
            del part
            if len(decoded) == rows:
                yield np.stack(decoded)
                decoded = []
    if decoded:
        yield np.stack(decoded)


def _is_one(images: Any) -> bool:
    """Return whether the argument is one image, or something that is no image and no iterable."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3)
    return isinstance(images, str | os.PathLike | bytes | Image.Image) or not isinstance(
        images, Iterable
    )


def _read(image: Any, model: Model) -> Pixels:
    if isinstance(image, bytes):
        return model.decode(image)
    if isinstance(image, str | os.PathLike):
        return model.decode(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.shape == model.image_shape:
            return image
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise ImageError(f"not an image, but an object of type {type(image).__name__}")
    height, width, channels = model.image_shape
    return convert_image(
        image, height=height, width=width, channels=channels, conversion=model.conversion
    )


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    pixels_HWC = array[..., None] if array.ndim == 2 else array
    is_image = pixels_HWC.ndim == 3 and pixels_HWC.shape[2] in _MODES and pixels_HWC.size
    if array.dtype != np.uint8 or not is_image:
        raise ImageError(f"not an image, but a {array.dtype} array of shape {list(array.shape)}")
    height, width, channels = pixels_HWC.shape
    return Image.frombytes(_MODES[channels], (width, height), pixels_HWC.tobytes())

"""Decodes images to uint8 arrays of the model's size and mode, and encodes arrays as images.

Training, gallery, query and servers decode with this module, so that they get the same pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from .regions import Region

_AVIF = ("AVIF",) if AvifImagePlugin.SUPPORTED else ()  # an option when Pillow is built
FORMATS = ("PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF", *_AVIF)
EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    *(f".{name.lower()}" for name in _AVIF),
)  # fmt: skip
MAX_PIXELS = 64 * 1024 * 1024
MAX_VALUE = 65535

_PLUGINS: Sequence[tuple[int, tuple[bytes, ...], Callable[[io.BytesIO], ImageFile.ImageFile]]] = (
    (0, (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    (0, (b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    (8, (b"WEBP",), WebPImagePlugin.WebPImageFile),
    (0, (b"BM",), BmpImagePlugin.BmpImageFile),
    (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    (0, (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    *(
        (4, (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftypmsf1"), AvifImagePlugin.AvifImageFile)
        for _ in _AVIF
    ),
)
"""Offset of the signature, its possible values, and the Pillow plug-in of the format."""
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_UNDECODABLE = (
    OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, RuntimeError,
    struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""Exceptions that Pillow raises for damaged images."""


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


def decode(
    source: bytes | str | Path,
    *,
    height: int,
    width: int,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    conversion: Conversion = DEFAULT_CONVERSION,
    region: Region | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode an image to a given size and number of channels.

    The first frame is decoded. The EXIF orientation is applied, palettes are expanded, grey values
    of 16 bits are scaled to 8 bits, CMYK is converted, and transparent parts get the background.
    The image is resized with an antialiased bilinear filter. An image of the target size is not
    resampled.

    Args:
        source: Encoded bytes, or the path of a file.
        height: Rows of the result, in pixels.
        width: Columns of the result, in pixels.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB.
        max_pixels: Largest width x height that is decoded; protects against decompression bombs.
        conversion: How size, mode and range of values are converted.
        region: Part of the image that is decoded; None for all of it.

    Returns:
        uint8 array of shape [height, width, channels].

    Raises:
        ImageError: The image is empty, truncated, larger than `max_pixels`, not in one of
            `FORMATS`, has values outside the range of 16 bits, or does not contain `region`.
    """
    return decode_with_transparency(
        source, height=height, width=width, channels=channels, max_pixels=max_pixels,
        conversion=conversion, region=region,
    )[0]  # fmt: skip


def decode_with_transparency(
    source: bytes | str | Path,
    *,
    height: int,
    width: int,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    conversion: Conversion = DEFAULT_CONVERSION,
    region: Region | None = None,
) -> tuple[npt.NDArray[np.uint8], bool]:
    """Decode an image as `decode` does, and return also whether it has transparent parts."""
    try:
        encoded = source if isinstance(source, bytes) else Path(source).read_bytes()
        try:
            image = _open_upright(encoded, height, width, max_pixels, region)
        except ValueError as cause:  # also raised for more text than Pillow decompresses
            if isinstance(cause, ImageError) or not encoded.startswith(_PLUGINS[0][1]):
                raise
            image = _open_upright(_without_text(encoded), height, width, max_pixels, region)
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
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except _UNDECODABLE as cause:
        raise ImageError(f"cannot be decoded: {cause}") from None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, channels), is_transparent


def _open_upright(
    encoded: bytes, height: int, width: int, max_pixels: int, region: Region | None
) -> Image.Image:
    """Decode an image upright, and cut out the region; without one, reduce a large JPEG."""
    with _open(encoded) as opened:
        pixels = opened.width * opened.height
        if pixels > max_pixels:
            raise ImageError(f"{pixels:,} pixels; at most {max_pixels:,} are decoded")
        if opened.format == "JPEG" and region is None:
            opened.draft(None, (width * 2, height * 2))
        opened.load()  # a PNG may store the orientation after the pixels
        ImageOps.exif_transpose(opened, in_place=True)
        if region is not None and (fault := region.find_fault(opened.size)):
            raise ImageError(fault)
        return opened if region is None else region.crop(opened)


def _open(encoded: bytes) -> ImageFile.ImageFile:
    """Read the header of an image with the Pillow plug-in of its format.

    `Image.open` tries the plug-ins of other formats too, and warns about large images, which
    `decode` rejects.
    """
    if not encoded:
        raise ImageError("empty: 0 bytes")
    for offset, signatures, plugin in _PLUGINS:
        if encoded.startswith(signatures, offset):
            return plugin(io.BytesIO(encoded))
    raise ImageError(f"not an image in {', '.join(FORMATS)} format")


def _without_text(png: bytes) -> bytes:
    """Remove the texts and the colour profile of a PNG file; the pixels do not depend on them."""
    parts, start = [png[:8]], 8
    while start < len(png):
        stop = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] not in _TEXT_CHUNKS:
            parts.append(png[start:stop])
        start = stop
    return b"".join(parts)


def size_of(encoded: bytes) -> tuple[int, int]:
    """Return height and width of an encoded image, in pixels."""
    with _open(encoded) as opened:
        return opened.height, opened.width


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode a uint8 [H, W, C] array (C = 1 or 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Encode an array as baseline JPEG with 4:2:0 chroma subsampling, which is lossy.

    Args:
        image: uint8 [H, W, C] with C = 1 or 3.
        quality: Quality setting of libjpeg, 1 to 100.
    """
    buffer = io.BytesIO()
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    pixels.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


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

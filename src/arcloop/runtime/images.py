"""Decodes images to uint8 arrays of the model's size and mode, and encodes arrays as images.

Training, gallery, query and servers decode with this module, so that they get the same pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

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

from .conversion import DEFAULT_CONVERSION, Conversion, ImageError, convert
from .regions import Region

__all__ = [
    "DEFAULT_CONVERSION", "EXTENSIONS", "FORMATS", "MAX_PIXELS", "Conversion", "ImageError",
    "convert_image", "decode", "decode_with_transparency", "encode_jpeg", "encode_png", "size_of",
]  # fmt: skip

_AVIF = ("AVIF",) if AvifImagePlugin.SUPPORTED else ()  # an option when Pillow is built
FORMATS = ("PNG", "JPEG", "WebP", "BMP", "TIFF", "GIF", *_AVIF)
EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    *(f".{name.lower()}" for name in _AVIF),
)  # fmt: skip
MAX_PIXELS = 64 * 1024 * 1024

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
        pixels_HWC, is_transparent = convert(
            image, height=height, width=width, channels=channels, conversion=conversion,
            region=region,
        )  # fmt: skip
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except _UNDECODABLE as cause:
        raise ImageError(f"cannot be decoded: {cause}") from None
    return pixels_HWC, is_transparent


def convert_image(
    image: Image.Image,
    *,
    height: int,
    width: int,
    channels: int,
    conversion: Conversion = DEFAULT_CONVERSION,
) -> npt.NDArray[np.uint8]:
    """Convert an image of Pillow, as `decode` converts a file of it; the image is not changed.

    The result differs from that of a large JPEG file, whose size `decode` reduces before it
    decodes the pixels.

    Args:
        image: An image of any mode and size, which may not be loaded yet.
        height: Rows of the result, in pixels.
        width: Columns of the result, in pixels.
        channels: 1 for grey, 3 for RGB.
        conversion: How size, mode and range of values are converted.

    Returns:
        uint8 array of shape [height, width, channels].

    Raises:
        ImageError: The image cannot be loaded, or has values outside the range of 16 bits.
    """
    try:
        return convert(
            ImageOps.exif_transpose(image), height=height, width=width, channels=channels,
            conversion=conversion,
        )[0]  # fmt: skip
    except ImageError:
        raise
    except _UNDECODABLE as cause:
        raise ImageError(f"cannot be decoded: {cause}") from None


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

import contextlib
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arcloop.runtime.images import Conversion, ImageError, decode, encode_png

SIZE = {"height": 4, "width": 6}


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_an_image_of_the_target_size_is_not_resampled():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert np.array_equal(
        decode(encoded(Image.fromarray(pixels)), **SIZE, channels=1)[..., 0], pixels
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
@settings(max_examples=20)
def test_png_round_trip(seed, channels):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    assert np.array_equal(decode(encode_png(pixels), **SIZE, channels=channels), pixels)


def by_pillow(content):
    """Return the pixels according to `Image.open`, or None if the image is damaged."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError):
        return None


def chunks_of(content):
    start, found = 8, []
    while start < len(content):
        size = int.from_bytes(content[start : start + 4])
        found.append(content[start : start + size + 12])
        start += size + 12
    return found


def chunk(name, data):
    checksum = zlib.crc32(name + data).to_bytes(4)
    return len(data).to_bytes(4) + name + data + checksum


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(), (3,)]), st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 9), st.lists(st.integers(0, 99), max_size=3), st.booleans(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_png_is_decoded_like_image_open(seed, channels, height, width, level, cuts, smooth):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    if smooth:  # other filters of rows
        pixels = (pixels % 3).cumsum(axis=0, dtype=np.uint8).cumsum(axis=1, dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), compress_level=level)
    head, data, end = chunks_of(content)
    ends = [0, *sorted(min(cut, len(data) - 12) for cut in cuts), len(data) - 12]
    parts = [chunk(b"IDAT", data[8:-4][a:b]) for a, b in itertools.pairwise(ends)]
    content = content[:8] + head + b"".join(parts) + end
    array = decode(content, height=height, width=width, channels=3 if channels else 1)
    assert np.array_equal(array.reshape(pixels.shape), pixels)
    assert np.array_equal(by_pillow(content), pixels)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["L", "RGB"]), st.integers(0, 500),
    st.integers(1, 255), st.sampled_from(["flip", "cut", "drop", "repeat", "append"]),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_damaged_png_is_detected_like_image_open(seed, mode, place, bits, damage):
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), np.uint8)
    whole = encoded(Image.fromarray(pixels).convert(mode))
    place %= len(whole)
    chunks = chunks_of(whole)
    content = {
        "flip": whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :],
        "cut": whole[:place],
        "drop": whole[:8] + b"".join(c for n, c in enumerate(chunks) if n != place % 3),
        "repeat": whole[:8] + b"".join(c * (1 + (n == place % 3)) for n, c in enumerate(chunks)),
        "append": whole + bytes([bits]) * place,
    }[damage]
    expected = by_pillow(content)
    if expected is None or not content:
        with pytest.raises(ImageError):
            decode(content, height=7, width=5, channels=len(mode))
    else:
        array = decode(content, height=7, width=5, channels=len(mode))
        assert np.array_equal(array.reshape(expected.shape), expected)


def test_the_result_is_writable():
    for form in ("PNG", "JPEG"):
        assert decode(encoded(Image.new("L", (6, 4)), form), **SIZE, channels=1).flags.writeable


def test_png_larger_than_allowed():
    with pytest.raises(ImageError, match="24 pixels; at most 23"):
        decode(encoded(Image.new("L", (6, 4))), **SIZE, channels=1, max_pixels=23)


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("1", "L", "RGB", "CMYK"),
    "WEBP": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
}


@pytest.mark.parametrize(("form", "mode"), [(f, m) for f, modes in MODES.items() for m in modes])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_uint8_of_the_right_shape(form, mode, channels):
    image = Image.new("L", (9, 7), 200).convert("RGB" if mode == "P" else "L").convert(mode)
    content = encoded(image, form)
    array = decode(content, **SIZE, channels=channels)
    assert array.shape == (4, 6, channels)
    assert array.dtype == np.uint8


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values))
    assert decode(content, height=1, width=4, channels=1).ravel().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("colour_type", "values"), [(2, 3), (6, 4)])
def test_colours_of_sixteen_bits_keep_their_upper_bits(colour_type, values):
    header = struct.pack(">IIBBBBB", 6, 4, 16, colour_type, 0, 0, 0)
    row = b"\0" + np.tile(np.array([0, 25855, 65535, 65535][:values], ">u2"), 6).tobytes()
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(4 * row)), chunk(b"IEND", b"")]
    array = decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts), **SIZE, channels=3)
    assert (array == (0, 100, 255)).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_the_value_that_becomes_white_can_be_set(form):
    values = np.array([[0, 16, 2048, 4095, 5000, 65535]], dtype=np.uint16)
    content = encoded(Image.fromarray(values), form)
    array = decode(content, height=1, width=6, channels=1, conversion=Conversion(4095))
    assert array.ravel().tolist() == [0, 0, 127, 255, 255, 255]
    assert decode(content, height=1, width=6, channels=1).ravel().tolist() == [0, 0, 7, 15, 19, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 1.0]], np.float32), "floating-point"),
        (np.array([[0, 65536]], np.int32), "0 to 65536, exceed 16 bits"),
        (np.array([[-1, 5]], np.int32), "-1 to 5, exceed 16 bits"),
    ],
)
def test_values_of_an_unknown_range_are_refused(values, message):
    """They would become black or white images."""
    with pytest.raises(ImageError, match=message):
        decode(encoded(Image.fromarray(values), "TIFF"), height=1, width=2, channels=1)


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "AVIF", "PNG"])
def test_the_first_of_several_frames_is_decoded(form):
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert decode(content, **SIZE, channels=3)[0, 0].argmax() == 0


@pytest.mark.parametrize("where", ["before the pixels", "after the pixels", "colour profile"])
def test_png_with_more_text_than_pillow_reads(where):
    """The text is not needed; 3 MB of it take 3 kB in the file."""
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    text = zlib.compress(b"x" * (3 << 20))
    name = b"iCCP" if where == "colour profile" else b"zTXt"
    large = chunk(name, b"note\0\0" + text)
    head, data, end = chunks_of(encoded(Image.fromarray(pixels)))
    parts = [head, data, large, end] if where == "after the pixels" else [head, large, data, end]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    assert by_pillow(content) is None
    assert np.array_equal(decode(content, **SIZE, channels=1)[..., 0], pixels)
    damaged = content.replace(data[8:-4], data[8:12] + bytes(len(data) - 16))
    with pytest.raises(ImageError):
        decode(damaged, **SIZE, channels=1)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged TIFF files
@pytest.mark.parametrize("form", ["TIFF", "GIF", "AVIF"])
@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255))))
@settings(max_examples=100, deadline=None)
def test_damage_never_raises_another_error(form, seed, changes):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    content = bytearray(encoded(Image.fromarray(pixels), form))
    for place, value in changes:
        content[place % len(content)] = value
    with contextlib.suppress(ImageError):
        decode(bytes(content), height=9, width=7, channels=3)


def test_transparent_is_black():
    image = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    assert decode(encoded(image), **SIZE, channels=3).max() == 0


ORIENTED = {
    1: [[10, 80], [150, 220]], 2: [[80, 10], [220, 150]], 3: [[220, 150], [80, 10]],
    4: [[150, 220], [10, 80]], 5: [[10, 150], [80, 220]], 6: [[150, 10], [220, 80]],
    7: [[220, 80], [150, 10]], 8: [[80, 220], [10, 150]],
}  # fmt: skip
"""Orientation -> upright quarters of an image that is stored with the quarters of orientation 1."""


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(form, orientation):
    stored = np.kron(np.array(ORIENTED[1], np.uint8), np.ones((16, 24), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(stored), form, exif=exif)
    height, width = (32, 48) if orientation <= 4 else (48, 32)
    array = decode(content, height=height, width=width, channels=1)[..., 0].astype(int)
    centres = array[height // 4 :: height // 2, width // 4 :: width // 2]
    assert np.abs(centres - ORIENTED[orientation]).max() <= 3  # some formats are lossy


RED, GREEN, BLUE = (254, 0, 0), (0, 255, 1), (0, 0, 254)
FRAMES = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE)]
COLOURS = {
    "CMYK JPEG": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), RED),
    "black CMYK JPEG": (encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), (0, 0, 0)),
    "first picture of an MPO": (
        encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]), RED),
    "first picture of an animated PNG": (
        encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), RED),
    "first picture of an animated WebP": (
        encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True), RED),
    "palette": (encoded(FRAMES[1].quantize(4)), BLUE),
    "transparent colour of a palette": (
        encoded(FRAMES[1].quantize(4), transparency=0), (0, 0, 0)),
    "transparent colour": (encoded(FRAMES[0], transparency=RED), (0, 0, 0)),
    "half transparent": (encoded(Image.new("RGBA", (8, 8), (254, 0, 0, 128))), (127, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", COLOURS)
def test_colours(case):
    content, colour = COLOURS[case]
    array = decode(content, **SIZE, channels=3)
    assert np.abs(array.astype(int) - colour).max() <= 3


def test_file_and_bytes_give_the_same(tmp_path):
    content = encoded(Image.new("RGB", (50, 40), (10, 20, 30)), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    expected = decode(content, **SIZE, channels=3)
    assert np.array_equal(decode(tmp_path / "a.jpg", **SIZE, channels=3), expected)


GOOD = encoded(Image.effect_noise((64, 64), 50), "PNG")
BOMB = GOOD[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)) + GOOD[33:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (GOOD[: len(GOOD) // 2], "cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:1000], "cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "WEBP")[:900], "cannot be decoded"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\n", "not an image"),
        (BOMB, "3,600,000,000 pixels; at most 67,108,864 are decoded"),
        (encoded(Image.new("L", (9, 9)), "PPM"), "not an image in PNG, JPEG, WebP, BMP, TIFF, GIF"),
    ],
)
def test_invalid_bytes_raise_an_error_with_the_reason(content, message):
    with pytest.raises(ImageError, match=message):
        decode(content, **SIZE, channels=1)


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        decode(tmp_path / "none.png", **SIZE, channels=1)


def test_a_large_image_is_rejected_before_it_is_decoded():
    with pytest.raises(ImageError, match="4,096 pixels; at most 4,095"):
        decode(GOOD, **SIZE, channels=1, max_pixels=4095)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_bytes_decode_or_raise_image_error(data):
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = decode(bytes(content), **SIZE, channels=1)
    except ImageError:
        return
    assert array.shape == (4, 6, 1)


def half_transparent():
    """Left half opaque red, right half transparent; the stored colour there is green."""
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, :3] = (200, 0, 0, 255)
    pixels[:, 3:] = (0, 200, 0, 0)
    return encoded(Image.fromarray(pixels))


@pytest.mark.parametrize(
    ("background", "colour"),
    [
        ("black", (0, 0, 0)),
        ("white", (255, 255, 255)),
        ("mean", (200, 0, 0)),
        ([1, 2, 3], (1, 2, 3)),
    ],
)
def test_transparent_parts_get_the_background(background, colour):
    array = decode(
        half_transparent(), **SIZE, channels=3, conversion=Conversion(background=background)
    )
    assert (array[:, :3] == (200, 0, 0)).all()
    assert (array[:, 3:] == colour).all()


def test_a_partly_transparent_pixel_is_blended():
    content = encoded(Image.new("RGBA", (6, 4), (100, 0, 50, 51)))  # alpha 0.2
    array = decode(content, **SIZE, channels=3, conversion=Conversion(background="white"))
    expected = 0.2 * np.array([100, 0, 50]) + 0.8 * 255
    assert np.abs(array - expected).max() <= 1
    grey = decode(content, **SIZE, channels=1, conversion=Conversion(background="white"))
    assert abs(int(grey[0, 0, 0]) - expected @ (0.299, 0.587, 0.114)) <= 2


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("tall", [False, True])
def test_pad_keeps_the_whole_image_and_its_aspect_ratio(mode, tall):
    image = Image.new(mode, (20, 40) if tall else (40, 20), 200 if mode == "L" else (200, 200, 200))
    conversion = Conversion(background="white", resize="pad")
    array = decode(encoded(image), height=8, width=8, channels=len(mode), conversion=conversion)
    array = array.swapaxes(0, 1) if tall else array
    assert (array[2:6] == 200).all()  # 8 x 4 pixels, centred
    assert (array[:2] == 255).all()
    assert (array[6:] == 255).all()


def test_crop_keeps_the_aspect_ratio_and_the_centre():
    columns = np.repeat(np.array([0, 0, 90, 90, 90, 90, 255, 255], np.uint8)[None], 4, 0)
    content = encoded(Image.fromarray(columns))
    array = decode(content, height=4, width=4, channels=1, conversion=Conversion(resize="crop"))
    assert (array == 90).all()


def test_the_mean_of_an_opaque_image_is_its_border():
    image = np.zeros((2, 8), np.uint8)
    image[:, :4] = 100
    conversion = Conversion(background="mean", resize="pad")
    array = decode(
        encoded(Image.fromarray(image)), height=8, width=8, channels=1, conversion=conversion
    )
    assert (array[:3] == 50).all()
    assert (array[3:5, :4] == 100).all()

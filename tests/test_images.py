import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arcloop.images import ImageError, decode, encode_png

SIZE = {"height": 4, "width": 6}


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_image_of_the_right_size_is_not_touched():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert np.array_equal(
        decode(encoded(Image.fromarray(pixels)), **SIZE, channels=1)[..., 0], pixels
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
@settings(max_examples=20)
def test_png_round_trip(seed, channels):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, channels), dtype=np.uint8)
    assert np.array_equal(decode(encode_png(pixels), **SIZE, channels=channels), pixels)


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("1", "L", "RGB", "CMYK"),
    "WEBP": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
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


def test_transparent_is_black():
    image = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    assert decode(encoded(image), **SIZE, channels=3).max() == 0


def test_exif_orientation_is_applied():
    pixels = np.zeros((6, 4), np.uint8)
    pixels[0, :] = 255  # the top row of the stored image
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise: the top becomes the right
    array = decode(encoded(Image.fromarray(pixels), "PNG", exif=exif), **SIZE, channels=1)[..., 0]
    assert array[:, -1].min() == 255
    assert array[:, :-1].max() == 0


def test_file_and_bytes_give_the_same(tmp_path):
    content = encoded(Image.new("RGB", (50, 40), (10, 20, 30)), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    expected = decode(content, **SIZE, channels=3)
    assert np.array_equal(decode(tmp_path / "a.jpg", **SIZE, channels=3), expected)


GOOD = encoded(Image.effect_noise((64, 64), 50), "PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (GOOD[: len(GOOD) // 2], "cannot be decoded"),
        (encoded(Image.new("L", (9, 9)), "GIF"), "not an image"),
    ],
)
def test_what_is_no_image_says_why(content, message):
    with pytest.raises(ImageError, match=message):
        decode(content, **SIZE, channels=1)


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        decode(tmp_path / "none.png", **SIZE, channels=1)


def test_bomb_is_refused_before_it_is_decoded():
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

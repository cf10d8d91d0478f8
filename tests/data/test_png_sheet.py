"""Each image of a sheet against the same decoded alone, as `tests/test_images.py` proves right."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arcloop.data.sources.png_sheet import PngSheet
from arcloop.runtime.images import ImageError, decode, encode_png


def make(seed, height, width, channels):
    """Make an image whose rows are packed with one or the other filter."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    for axis in range(seed % 3):
        pixels = (pixels % 5).cumsum(axis=axis, dtype=np.uint8)
    return pixels


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=6), st.integers(1, 40), st.integers(1, 40),
    st.sampled_from([1, 3]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_images_of_a_sheet(seeds, height, width, channels):
    images = [make(seed, height, width, channels) for seed in seeds]
    sheet = PngSheet(height, width, channels)
    assert all(sheet.add(encode_png(image)) for image in images)
    assert np.array_equal(sheet.decode(), np.array(images).reshape(-1, height, width, channels))


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 500), st.integers(1, 255),
    st.sampled_from(["flip", "cut", "append"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_what_is_damaged_is_not_taken_or_is_the_same(seed, place, bits, damage):
    whole = encode_png(make(seed, 7, 5, 3))
    place %= len(whole)
    content = {
        "flip": whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :],
        "cut": whole[:place],
        "append": whole + bytes([bits]),
    }[damage]
    sheet = PngSheet(7, 5, 3)
    assert not sheet.add(content)
    assert sheet.add(whole)
    assert np.array_equal(sheet.decode()[0], decode(whole, height=7, width=5, channels=3))


def png_of(rows, height, width):
    """Make a grey PNG out of packed rows, whatever they are, with right checksums."""

    def chunk(name, data):
        return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + b"\x08\0\0\0\0"
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_every_filter_begins_with_nothing_above():
    rows = [bytes([kind, 200, 100, 90]) for kind in range(5)]
    contents = [png_of(row, 1, 3) for row in [*rows, *reversed(rows)]]
    sheet = PngSheet(1, 3, 1)
    assert all(map(sheet.add, contents))
    alone = [decode(content, height=1, width=3, channels=1) for content in contents]
    assert np.array_equal(sheet.decode(), alone)
    assert sheet.decode()[:3].ravel().tolist() == [200, 100, 90, 200, 44, 134, 200, 100, 90]


@pytest.mark.parametrize(
    "rows", [b"\x05abc", b"\0ab", b"\0abcd", b"", bytes(1 << 20)], ids=len
)  # fmt: skip
def test_rows_that_are_not_right_are_left_to_the_decoder(rows):
    assert not PngSheet(1, 3, 1).add(png_of(rows, 1, 3))


def test_unknown_filter_is_an_error():
    with pytest.raises(ImageError):
        decode(png_of(b"\x05abc", 1, 3), height=1, width=3, channels=1)


def test_other_sizes_modes_and_large_images_are_left_to_the_decoder():
    assert not PngSheet(4, 4, 1).add(encode_png(make(0, 4, 5, 1)))
    assert not PngSheet(4, 4, 3).add(encode_png(make(0, 4, 4, 1)))
    assert not PngSheet(200, 200, 3).add(encode_png(make(0, 200, 200, 3)))
    transparent = io.BytesIO()
    Image.fromarray(make(0, 4, 4, 1)[..., 0]).save(transparent, "PNG", transparency=3)
    assert not PngSheet(4, 4, 1).add(transparent.getvalue())

"""Boxes and landmarks: which pixels of a file become an image."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arcloop.runtime.images import Conversion, ImageError, decode, encode_png
from arcloop.runtime.regions import Region

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]]
)  # fmt: skip


def umeyama(source, target):
    """Umeyama (1991), equations 40 to 43: scale, rotation and translation by the SVD."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)
    u, d, v = np.linalg.svd(covariance)
    sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = u @ sign @ v
    scale = np.trace(np.diag(d) @ sign) / ((source - source_mean) ** 2).sum(1).mean()
    return scale * rotation, target_mean - scale * rotation @ source_mean


def gradient(width, height):
    """An image whose red value is x and whose green value is y."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return pixels


@given(st.integers(0, 2**32 - 1), st.sampled_from([(112, 112), (56, 56), (112, 96), (20, 30)]))
@settings(max_examples=40, deadline=None)
def test_landmarks_are_moved_to_the_template(seed, shape):
    """Bilinear interpolation of a gradient shows from where each pixel was read."""
    rng, (height, width) = np.random.default_rng(seed), shape
    angle, scale = rng.uniform(-0.6, 0.6), rng.uniform(0.6, 1.3)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE - 56) @ turn.T + 120 + rng.normal(0, 3, (5, 2))
    region = Region(box=(0, 0, 1, 1), landmarks=tuple(points.ravel()))
    array = decode(
        encode_png(gradient(240, 250)), height=height, width=width, channels=3, region=region,
        conversion=Conversion(background=[9, 9, 200]),
    )  # fmt: skip
    target = TEMPLATE * height / 112 + [(width - height) / 2, 0]
    matrix, offset = umeyama(points, target)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    source = (np.stack([x, y], -1) - offset) @ np.linalg.inv(matrix).T
    is_inside = ((source > 3) & (source < [236, 246])).all(-1)
    assert is_inside.any()
    assert np.abs(array[..., :2] - source)[is_inside].max() <= 1.5
    assert (array[is_inside, 2] == 0).all()
    is_outside = ((source < -3) | (source > [243, 253])).any(-1)
    assert (array[is_outside] == (9, 9, 200)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_face_in_the_template_is_not_resampled(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, channels), dtype=np.uint8)
    region = Region(landmarks=tuple(TEMPLATE.ravel()))
    array = decode(encode_png(pixels), height=112, width=112, channels=channels, region=region)
    assert np.abs(array.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_box_is_the_image_that_was_cut_out_as_displayed(resize, orientation):
    stored = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (60, 90, 4), dtype=np.uint8), "RGBA"
    )
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(content, "PNG", exif=exif)
    turned = {1: 0, 3: 180, 6: 270, 8: 90}[orientation]
    upright = stored.rotate(turned, expand=True)
    box = (5, 11, 44, 58)
    cut = io.BytesIO()
    upright.crop(box).save(cut, "PNG")
    how = {"height": 16, "width": 24, "channels": 3,
           "conversion": Conversion(background="mean", resize=resize)}  # fmt: skip
    array = decode(content.getvalue(), **how, region=Region(box=box))
    assert np.array_equal(array, decode(cut.getvalue(), **how))


def test_a_box_of_a_large_jpeg_is_in_pixels_of_the_file():
    """A JPEG that becomes a small image is otherwise decoded at a reduced scale."""
    content = io.BytesIO()
    Image.fromarray(gradient(256, 256)).save(content, "JPEG", quality=95)
    region = Region(box=(100, 40, 108, 48))
    array = decode(content.getvalue(), height=8, width=8, channels=3, region=region).astype(int)
    assert np.abs(array - gradient(256, 256)[40:48, 100:108]).max() <= 8


def test_a_box_that_ends_outside_is_refused():
    content = encode_png(gradient(20, 10))
    with pytest.raises(ImageError, match=r"^x_2=21, but the image is 20 pixels wide; y_2=11, but"):
        decode(content, height=4, width=4, channels=3, region=Region(box=(0, 0, 21, 11)))
    decode(content, height=4, width=4, channels=3, region=Region(box=(0, 0, 20, 10)))


def test_names_of_regions():
    nan = float("nan")
    assert Region.from_values([nan] * 14) is None
    assert str(Region.from_values([1.4, 2, 30, 40.6, *[nan] * 10])) == "box=1,2,30,41"
    face = Region.from_values([*[nan] * 4, *np.arange(10.0)])
    assert str(face) == "landmarks=0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0"

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcloop.errors import ConfigError
from arcloop.training.augmentation import (
    Chain,
    ColorJitter,
    NoAugmentation,
    RandomAffine,
    RandomErasing,
    RandomResizedCrop,
)
from arcloop.training.augmentation.geometry import warp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 3, channels: int = 1, height: int = 12, width: int = 12) -> Tensor:
    return 255 * torch.rand(batch, channels, height, width, generator=generator(1))


def same(batch: int, value: float) -> Tensor:
    return torch.full((batch, 1, 1), value)


def warp_all(
    pixels: Tensor, angle: float = 0.0, size: float = 1.0, right: float = 0.0, down: float = 0.0
) -> Tensor:
    batch = len(pixels)
    return warp(
        pixels,
        angle=same(batch, angle),
        size=same(batch, size),
        right=same(batch, right),
        down=same(batch, down),
    )


def oracle_warp(image_HW: Tensor, angle: float, size: float, right: float, down: float) -> Tensor:
    """Warp pixel by pixel in float64: invert shift, rotation and scaling, then interpolate."""
    source = image_HW.double().numpy()
    height, width = source.shape
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            x = column - (width - 1) / 2 - right * width
            y = row - (height - 1) / 2 - down * height
            u = (math.cos(angle) * x + math.sin(angle) * y) / size + (width - 1) / 2
            v = (math.cos(angle) * y - math.sin(angle) * x) / size + (height - 1) / 2
            for r in (math.floor(v), math.floor(v) + 1):
                for c in (math.floor(u), math.floor(u) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[row, column] += source[r, c] * (1 - abs(v - r)) * (1 - abs(u - c))
    return torch.from_numpy(out)


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
@pytest.mark.parametrize(
    "change",
    [
        {"angle": 0.4},
        {"size": 1.3},
        {"right": 0.1, "down": -0.2},
        {"angle": -0.7, "size": 0.8, "right": -0.15, "down": 0.1},
    ],
)
def test_warp_equals_the_oracle(change: dict[str, float], size: tuple[int, int]) -> None:
    pixels = images(2, 1, *size)
    full = {"angle": 0.0, "size": 1.0, "right": 0.0, "down": 0.0} | change
    expected = torch.stack([oracle_warp(image, **full)[None] for image in pixels[:, 0]])
    torch.testing.assert_close(warp_all(pixels, **full).double(), expected, rtol=0, atol=1e-3)


def test_shift_by_whole_pixels_is_a_roll_with_black_edges() -> None:
    pixels = images()
    expected = pixels.roll((3, -2), dims=(2, 3))
    expected[:, :, :3] = 0
    expected[:, :, :, -2:] = 0
    result = warp_all(pixels, right=-2 / 12, down=3 / 12)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


def test_positive_angle_rotates_clockwise() -> None:
    pixels = images()
    result = warp_all(pixels, angle=math.pi / 2)
    torch.testing.assert_close(result, pixels.rot90(-1, (2, 3)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_zero_magnitudes_change_nothing(channels: int) -> None:
    pixels = images(channels=channels, width=17)
    still = RandomAffine(shift=0.0, scale=0.0, rotate_degrees=0.0, outside="black")
    torch.testing.assert_close(still(pixels, generator()), pixels, rtol=0, atol=1e-3)
    assert torch.equal(NoAugmentation()(pixels, generator()), pixels)


def test_each_image_changes_independently_and_depends_only_on_the_generator() -> None:
    pixels = images(1).expand(8, -1, -1, -1)
    augment = RandomAffine(shift=0.1, scale=0.1, rotate_degrees=10.0, outside="black")
    torch.manual_seed(1)
    first = augment(pixels, generator())
    torch.manual_seed(2)
    assert torch.equal(first, augment(pixels, generator()))
    source = generator()
    again = augment(pixels, source)
    assert torch.equal(again, first)
    assert not torch.allclose(augment(pixels, source), first)
    for other in first[1:]:
        assert not torch.allclose(other, first[0])


def test_pixels_stay_in_range_and_the_edge_is_black() -> None:
    pixels = torch.full((64, 1, 20, 20), 255.0)
    result = RandomAffine(shift=0.3, scale=0.0, rotate_degrees=0.0, outside="black")(
        pixels, generator()
    )
    assert result.min() == 0
    assert result.max() <= 255 + 1e-3
    assert result.dtype == pixels.dtype
    torch.testing.assert_close(result[:, :, 10, 10], torch.full((64, 1), 255.0))


@pytest.mark.parametrize(
    ("magnitude", "measure"),
    [({"shift": 0.25}, "shift"), ({"scale": 0.5}, "scale"), ({"rotate_degrees": 60.0}, "turn")],
)
def test_magnitudes_are_tight_bounds(magnitude: dict[str, float], measure: str) -> None:
    """A bright spot right of the centre shows the transform of each image."""
    full = {"shift": 0.0, "scale": 0.0, "rotate_degrees": 0.0, "outside": "black"} | magnitude
    pixels = torch.zeros(400, 1, 64, 64)
    pixels[:, :, 31:33, 47:49] = 255.0
    out = RandomAffine(**full)(pixels, generator())[:, 0]
    axis = torch.arange(64) - 31.5
    mass = out.sum((1, 2))
    x = (out.sum(1) * axis).sum(1) / mass
    y = (out.sum(2) * axis).sum(1) / mass
    values = {
        "shift": torch.cat([x - 16, y]) / 64,
        "scale": torch.hypot(x, y).div(16).log() / math.log(1.5) * 0.5,
        "turn": torch.atan2(y, x).rad2deg(),
    }[measure]
    (bound,) = magnitude.values()
    assert values.abs().max() <= bound * 1.01
    assert values.max() > 0.95 * bound
    assert values.min() < -0.95 * bound


@pytest.mark.parametrize("values", [{"shift": 1.5}, {"scale": -0.1}, {"rotate_degrees": -1.0}])
def test_values_out_of_range_are_named(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"augmentation.{name}"):
        RandomAffine(
            **({"shift": 0.0, "scale": 0.0, "rotate_degrees": 0.0, "outside": "black"} | values)
        )


STILL_CROP = {
    "min_area": 1.0, "max_ratio": 1.0, "flip": 0.0, "rotate_degrees": 0.0, "outside": "border",
}  # fmt: skip
STILL_COLOR = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
ERASING = {"probability": 1.0, "min_area": 0.1, "max_area": 0.3, "max_ratio": 2.0}


def test_a_crop_of_everything_changes_nothing_and_a_flip_mirrors() -> None:
    pixels = images(4, 3, 9, 14)
    close = {"rtol": 0, "atol": 1e-3}
    still = RandomResizedCrop(**STILL_CROP)(pixels, generator())
    torch.testing.assert_close(still, pixels, **close)
    flipped = RandomResizedCrop(**STILL_CROP | {"flip": 1.0})(pixels, generator())
    torch.testing.assert_close(flipped, pixels.flip(3), **close)


def test_a_crop_is_an_axis_aligned_part_of_the_image() -> None:
    """The red and green channel contain the coordinates, so each output shows its source."""
    height, width = 40, 60
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y, x]).float().expand(300, -1, -1, -1)
    crop = RandomResizedCrop(**STILL_CROP | {"min_area": 0.25, "max_ratio": 1.5})
    out = crop(pixels, generator())
    left, right = out[:, 0, 20, 5], out[:, 0, 20, -6]  # inside, where nothing is repeated
    top, bottom = out[:, 1, 4, 30], out[:, 1, -5, 30]
    across, along = (right - left) / (width - 11), (bottom - top) / (height - 9)
    area, ratio = across * along, across / along
    assert 0.25 - 1e-3 <= area.min() < 0.3
    assert 0.9 < area.max() <= 1 + 1e-3
    assert ratio.min() >= 1 / 1.5 - 1e-3
    assert ratio.max() <= 1.5 + 1e-3
    torch.testing.assert_close(out[:, 0, 3, 5], left)  # columns stay columns
    assert out[:, 0].min() >= 0
    assert out[:, 0].max() <= width - 1
    assert left.std() > 3


def test_border_repeats_the_outermost_pixels() -> None:
    pixels = torch.full((8, 1, 12, 12), 200.0)
    affine = RandomAffine(shift=0.5, scale=0.0, rotate_degrees=0.0, outside="border")
    torch.testing.assert_close(affine(pixels, generator()), pixels)
    turned = RandomResizedCrop(**STILL_CROP | {"rotate_degrees": 45.0})
    torch.testing.assert_close(turned(pixels, generator()), pixels)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_color_jitter_equals_the_oracle(name: str) -> None:
    """Compute the change by numpy, from the factor that the output shows."""
    pixels = images(5, 3, 6, 6) * 0.4 + 70  # far from 0 and 255, so that nothing is clipped
    out = ColorJitter(**STILL_COLOR | {name: 0.2})(pixels, generator())
    for before, after in zip(pixels.double().numpy(), out.double().numpy(), strict=True):
        luma = np.tensordot([0.299, 0.587, 0.114], before, 1)
        if name == "hue":
            after_luma = np.tensordot([0.299, 0.587, 0.114], after, 1)
            np.testing.assert_allclose(after_luma, luma, atol=0.05)
            turned = _chroma(after) / _chroma(before)  # complex numbers of one angle and length 1
            np.testing.assert_allclose(np.abs(turned), 1, atol=0.01)
            angle = np.angle(turned) / (2 * math.pi)
            assert angle.max() - angle.min() < 0.005
            assert 0.001 < abs(angle.mean()) <= 0.2
            continue
        centre = {"brightness": 0.0, "contrast": luma.mean(), "saturation": luma}[name]
        factor = ((after - centre) * (before - centre)).sum() / ((before - centre) ** 2).sum()
        assert 0.8 <= factor <= 1.2
        np.testing.assert_allclose(after, centre + factor * (before - centre), atol=1e-2)


def _chroma(image_CHW: np.ndarray) -> np.ndarray:
    red, green, blue = image_CHW
    i = 0.5959 * red - 0.2746 * green - 0.3213 * blue
    return i + 1j * (0.2115 * red - 0.5227 * green + 0.3112 * blue)


def test_color_jitter_of_grey_images_and_its_range() -> None:
    grey = images(4, 1)
    jitter = ColorJitter(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    for pixels in (grey, images(4, 3)):
        out = jitter(pixels, generator())
        assert out.shape == pixels.shape
        assert out.min() >= 0
        assert out.max() <= 255
        still = ColorJitter(**STILL_COLOR)(pixels, generator())
        torch.testing.assert_close(still, pixels, rtol=0, atol=1e-3)


def test_erasing_replaces_one_rectangle_by_the_mean() -> None:
    pixels = images(200, 3, 20, 30)
    out = RandomErasing(**ERASING)(pixels, generator())
    shares = []
    for before, after in zip(pixels, out, strict=True):
        changed = (before != after).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        assert changed.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1
        assert len(columns) == columns[-1] - columns[0] + 1
        torch.testing.assert_close(
            after[:, changed].T, before.mean((1, 2)).expand(len(rows) * len(columns), -1)
        )
        shares.append(changed.float().mean().item())
    assert 0.05 < min(shares) < 0.12
    assert 0.28 < max(shares) < 0.38
    some = RandomErasing(**ERASING | {"probability": 0.25})(pixels, generator())
    share = (some != pixels).flatten(1).any(1).float().mean()
    assert 0.15 < share < 0.35


def test_a_chain_applies_its_steps_in_order_and_leaves_out_null() -> None:
    pixels = images(6, 3)
    steps = RandomErasing(**ERASING), ColorJitter(**STILL_COLOR | {"brightness": 0.5})
    chain = Chain(first=steps[0], none=None, second=steps[1])
    source = generator()
    expected = steps[1](steps[0](pixels, source), source)
    assert torch.equal(chain(pixels, generator()), expected)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (RandomResizedCrop, {"min_area": 0.0}),
        (RandomResizedCrop, {"max_ratio": 0.9}),
        (RandomResizedCrop, {"outside": "white"}),
        (ColorJitter, {"hue": 0.6}),
        (RandomErasing, {"probability": 1.1}),
    ],
)
def test_values_of_the_others_out_of_range_are_named(make, values) -> None:
    (name,) = values
    right = {RandomResizedCrop: STILL_CROP, ColorJitter: STILL_COLOR, RandomErasing: ERASING}
    with pytest.raises(ConfigError, match=f"augmentation.{name}"):
        make(**right[make] | values)

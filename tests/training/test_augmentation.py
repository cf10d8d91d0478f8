import math

import numpy as np
import pytest
import torch
from torch import Tensor

from arcloop.errors import ConfigError
from arcloop.training.augmentation import NoAugmentation, RandomAffine, warp


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
    still = RandomAffine(shift=0.0, scale=0.0, rotate_degrees=0.0)
    torch.testing.assert_close(still(pixels, generator()), pixels, rtol=0, atol=1e-3)
    assert torch.equal(NoAugmentation()(pixels, generator()), pixels)


def test_each_image_changes_independently_and_depends_only_on_the_generator() -> None:
    pixels = images(1).expand(8, -1, -1, -1)
    augment = RandomAffine(shift=0.1, scale=0.1, rotate_degrees=10.0)
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
    result = RandomAffine(shift=0.3, scale=0.0, rotate_degrees=0.0)(pixels, generator())
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
    full = {"shift": 0.0, "scale": 0.0, "rotate_degrees": 0.0} | magnitude
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
        RandomAffine(**({"shift": 0.0, "scale": 0.0, "rotate_degrees": 0.0} | values))

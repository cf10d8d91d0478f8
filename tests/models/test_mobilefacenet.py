import io

import pytest
import torch

from arcloop.errors import ConfigError
from arcloop.models import Embedder, MobileFaceNet


def make(channels: int = 3, size: tuple[int, int] = (112, 112), **changes: object) -> MobileFaceNet:
    values: dict[str, object] = {"width": 128, "blocks": [1, 4, 6, 2], "features": 512}
    return MobileFaceNet(in_channels=channels, image_size=size, **(values | changes))


def published_size(channels: int, blocks: list[int], width: int, whole: int) -> int:
    """Number of parameters of insightface's MobileFaceNet before its last linear layer."""

    def convolution(kernel: int, inputs: int, outputs: int, groups: int = 1) -> int:
        return kernel**2 * inputs // groups * outputs + 2 * outputs + outputs

    def bottleneck(inputs: int, outputs: int, hidden: int) -> int:
        wide = convolution(1, inputs, hidden) + convolution(3, hidden, hidden, hidden)
        return wide + hidden * outputs + 2 * outputs

    total = convolution(3, channels, width)
    if blocks[0] == 1:
        total += convolution(3, width, width, 64)
    else:
        total += blocks[0] * bottleneck(width, width, 128)
    total += bottleneck(width, width, 128) + blocks[1] * bottleneck(width, width, 128)
    total += bottleneck(width, 2 * width, 256) + blocks[2] * bottleneck(2 * width, 2 * width, 256)
    total += bottleneck(2 * width, 2 * width, 512) + blocks[3] * bottleneck(
        2 * width, 2 * width, 256
    )
    return total + convolution(1, 2 * width, 512) + whole * 512 + 2 * 512


@pytest.mark.parametrize(("blocks", "width"), [([1, 4, 6, 2], 128), ([2, 8, 12, 4], 256)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_has_the_published_size(channels: int, blocks: list[int], width: int) -> None:
    net = make(channels, blocks=blocks, width=width)
    assert sum(p.numel() for p in net.parameters()) == published_size(channels, blocks, width, 49)


@pytest.mark.parametrize(
    ("size", "last"),
    [((112, 112), (7, 7)), ((32, 32), (2, 2)), ((33, 47), (3, 3)), ((40, 100), (3, 7))],
)
def test_the_last_convolution_is_over_the_whole_map_of_any_size(
    size: tuple[int, int], last: tuple[int, int]
) -> None:
    net = make(1, size, width=64, blocks=[1, 1, 1, 1], features=32).eval()
    assert net.whole[0].kernel_size == last
    with torch.no_grad():
        assert net(torch.zeros(2, 1, *size)).shape == (2, 32, 1, 1)


def test_features_depend_on_positions() -> None:
    """With global average pooling, exchanging two halves of an image would change nothing."""
    torch.manual_seed(0)
    net = make(1, (64, 64), width=64, blocks=[1, 1, 1, 1], features=32).eval()
    maps = torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        assert not torch.allclose(net.whole(maps), net.whole(maps.roll(2, dims=3)), atol=1e-3)


def test_a_bottleneck_of_stride_one_adds_its_input() -> None:
    block = make(1, (32, 32)).stages[1][0].eval()
    torch.nn.init.zeros_(block.layers[-1].weight)
    x_BCHW = torch.randn(2, 128, 5, 5)
    assert torch.equal(block(x_BCHW), x_BCHW)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32, 1), (45, 33, 3)])
def test_scripted_equals_eager_after_saving(shape: tuple[int, int, int]) -> None:
    backbone = make(shape[2], shape[:2], width=64, blocks=[1, 1, 2, 1], features=32)
    embedder = Embedder(
        backbone, image_shape=shape, embedding_dim=8, dropout=0.1, mean=[0.5], std=[0.5]
    ).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(embedder), file)
    file.seek(0)
    pixels = torch.randint(0, 256, (5, shape[2], *shape[:2]), dtype=torch.uint8)
    torch.testing.assert_close(torch.jit.load(file)(pixels), embedder(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"blocks": [1, 4, 6]}, r"blocks=\[1, 4, 6\] must have 4 entries"),
        ({"width": 100}, "width=100 must be a multiple of 64"),
        ({"features": 0}, "backbone.features=0"),
    ],
)
def test_errors_name_values_out_of_range(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(1, (32, 32), **values)

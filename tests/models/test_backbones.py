import pytest
import torch
import yaml
from torch import nn

from arcloop.config.files import bundled
from arcloop.errors import ConfigError
from arcloop.models import ConvNet, IResNet


def published_iresnet_size(layers: list[int], channels: int) -> int:
    """Parameters of insightface's IResNet up to its last stage, counted by hand."""
    total = channels * 64 * 9 + 2 * 64 + 64
    inputs = 64
    for count, outputs in zip(layers, [64, 128, 256, 512], strict=True):
        for block in range(count):
            before = inputs if block == 0 else outputs
            total += 2 * before + before * outputs * 9 + 2 * outputs + outputs
            total += outputs * outputs * 9 + 2 * outputs
        total += inputs * outputs + 2 * outputs
        inputs = outputs
    return total


def test_convnet_halves_the_map_in_each_stage() -> None:
    net = ConvNet(in_channels=3, widths=[4, 8, 16], depth=2).eval()
    assert net(torch.zeros(2, 3, 28, 28)).shape == (2, 16, 3, 3)
    assert net(torch.zeros(1, 3, 33, 20)).shape == (1, 16, 4, 2)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 6


def test_each_stage_ends_with_batch_norm_and_relu() -> None:
    torch.manual_seed(0)
    net = ConvNet(in_channels=1, widths=[4], depth=1).train()
    out_BCHW = net(torch.randn(64, 1, 8, 8))
    assert out_BCHW.min() == 0
    # The output of batch norm and ReLU is the positive half of a normal distribution.
    assert out_BCHW.mean().item() == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 14, 3]), (100, [3, 13, 30, 3])],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_iresnet_has_the_published_size_and_stride(
    depth: int, layers: list[int], channels: int
) -> None:
    node = yaml.safe_load((bundled("conf") / f"backbone/iresnet{depth}.yaml").read_text())
    with torch.device("meta"):
        net = IResNet(in_channels=channels, layers=node["layers"], widths=node["widths"]).eval()
        shape = net(torch.zeros(1, channels, 32, 32)).shape
    assert sum(p.numel() for p in net.parameters()) == published_iresnet_size(layers, channels)
    assert shape == (1, 512, 2, 2)


def test_iresnet_accepts_odd_sizes() -> None:
    net = IResNet(in_channels=1, layers=[1, 1, 1, 1], widths=[4, 4, 8, 8]).eval()
    assert net(torch.zeros(1, 1, 33, 47)).shape == (1, 8, 3, 3)
    assert net(torch.zeros(1, 1, 112, 112)).shape == (1, 8, 7, 7)


def test_a_residual_block_adds_its_input() -> None:
    net = IResNet(in_channels=1, layers=[2], widths=[4]).eval()
    block = net.layer1[1]
    nn.init.zeros_(block.bn3.weight)
    x_BCHW = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x_BCHW), x_BCHW)


def test_different_numbers_of_layers_and_widths_raise_an_error() -> None:
    with pytest.raises(ConfigError, match=r"layers has 3 stages and backbone\.widths 4"):
        IResNet(in_channels=1, layers=[1, 1, 1], widths=[4, 4, 4, 4])


@pytest.mark.parametrize("widths", [[0], [4, -1], [4.5], 4])
def test_errors_name_widths_out_of_range(widths: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.widths"):
        ConvNet(in_channels=1, widths=widths, depth=1)


def test_a_residual_convolution_adds_its_input() -> None:
    net = ConvNet(in_channels=1, widths=[4], depth=2).eval()
    refinement = net.stages[0][-1]
    nn.init.constant_(refinement.norm.weight, 0)
    x_BCHW = torch.randn(2, 4, 5, 5)
    assert torch.equal(refinement(x_BCHW), x_BCHW)

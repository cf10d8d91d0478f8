import gzip
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arcloop.errors import ConfigError
from arcloop.models import ConvNet, Embedder, IResNet

MNIST = Path(__file__).parents[2] / "data/mnist/t10k-images-idx3-ubyte.gz"
SHAPES = [(28, 28, 1), (33, 27, 3)]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """64 real digits, uint8 [64, 1, 28, 28]."""
    with gzip.open(MNIST) as file:
        pixels = np.frombuffer(file.read(16 + 64 * 784), dtype=np.uint8, offset=16)
    return torch.from_numpy(pixels.copy()).view(64, 1, 28, 28)


def make_backbone(kind: str, channels: int) -> nn.Module:
    if kind == "convnet":
        return ConvNet(in_channels=channels, widths=[8, 16], depth=2)
    return IResNet(in_channels=channels, layers=[1, 2], widths=[8, 16])


def make_embedder(
    shape: tuple[int, int, int] = (28, 28, 1), kind: str = "convnet", **changes: object
) -> Embedder:
    values: dict[str, object] = {"embedding_dim": 10, "dropout": 0.2, "mean": [0.13], "std": [0.3]}
    embedder = Embedder(make_backbone(kind, shape[2]), image_shape=shape, **(values | changes))
    with torch.no_grad():  # set statistics, so that no batch norm is an identity
        for module in embedder.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return embedder.eval()


def random_images(batch: int, shape: tuple[int, int, int]) -> Tensor:
    height, width, channels = shape
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["convnet", "iresnet"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_scripted_equals_eager_before_and_after_saving(
    kind: str, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    embedder = make_embedder(shape, kind)
    scripted = torch.jit.script(embedder)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    reloaded = torch.jit.load(file)
    for batch in (0, 1, 5):
        images_BCHW = random_images(batch, shape)
        expected_BD = embedder(images_BCHW)
        layouts = [images_BCHW, images_BCHW.contiguous(memory_format=torch.channels_last)]
        layouts += [images_BCHW.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)]
        for layout in layouts:
            for model in (embedder, scripted, reloaded):
                for pixels in (layout, layout.float()):
                    out_BD = model(pixels)
                    assert out_BD.dtype == torch.float32
                    torch.testing.assert_close(out_BD, expected_BD, rtol=0, atol=1e-6)
    assert reloaded.image_shape == shape
    assert reloaded.embedding_dim == 10


@torch.no_grad()
def test_embeddings_are_float32_of_norm_one_also_under_autocast(digits: Tensor) -> None:
    embedder = make_embedder()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            emb_BD = embedder(digits)
            features_BD = embedder.features(digits)
        assert emb_BD.dtype == features_BD.dtype == torch.float32
        norms = emb_BD.double().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(64, dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(emb_BD, features_BD / features_BD.norm(dim=1, keepdim=True))
        assert not torch.allclose(features_BD.norm(dim=1), torch.ones(64), atol=0.1)


def test_neck_is_norm_dropout_linear_norm_in_float64(digits: Tensor) -> None:
    torch.manual_seed(0)
    embedder = make_embedder(dropout=0.5)
    state = {name: value.double() for name, value in embedder.state_dict().items()}
    with torch.no_grad():
        pixels = (digits.double() / 255 - 0.13) / 0.3
        maps = embedder.backbone.double()(pixels)
        result = embedder.backbone.float() and embedder.features(digits)

    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        unit = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return unit * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)

    flat = batch_norm(maps, "neck.0").reshape(64, -1)
    expected = batch_norm(flat @ state["neck.3.weight"].T + state["neck.3.bias"], "norm")
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)


def test_normalisation_is_per_channel_and_its_constants_are_in_the_state_dict() -> None:
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.25, 0.5]
    embedder = make_embedder((8, 8, 3), mean=mean, std=std)
    pixels = random_images(2, (8, 8, 3))
    expected = np.empty((2, 3, 8, 8))
    for channel in range(3):
        plane = pixels[:, channel].numpy().astype(np.float64) / 255
        expected[:, channel] = (plane - mean[channel]) / std[channel]
    result = embedder.normalise(pixels)
    torch.testing.assert_close(result.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    state = embedder.state_dict()
    assert state["mean"].shape == state["std"].shape == (1, 3, 1, 1)
    assert make_embedder((8, 8, 3)).mean.flatten().tolist() == pytest.approx([0.13 * 255] * 3)


def test_construction_does_not_change_the_backbone() -> None:
    backbone = ConvNet(in_channels=1, widths=[4], depth=1).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    Embedder(backbone, image_shape=(9, 9, 1), embedding_dim=4, dropout=0.0, mean=[0.0], std=[1.0])
    assert backbone.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_are_channels_last() -> None:
    embedder = make_embedder()
    for module in embedder.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_gradients_reach_every_trainable_weight(digits: Tensor) -> None:
    embedder = make_embedder().train()
    embedder.features(digits)[:, 0].sum().backward()
    for name, parameter in embedder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert [n for n, p in embedder.named_parameters() if not p.requires_grad] == ["norm.weight"]


def test_an_image_that_is_too_small_raises_an_error() -> None:
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    with pytest.raises(ConfigError, match="no feature map for 4x4x1 pixels"):
        Embedder(
            backbone, image_shape=(4, 4, 1), embedding_dim=4, dropout=0.0, mean=[0.0], std=[1.0]
        )


def test_a_backbone_without_a_feature_map_raises_an_error() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ConfigError, match="no feature map"):
        Embedder(flat, image_shape=(4, 4, 1), embedding_dim=4, dropout=0.0, mean=[0.0], std=[1.0])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"dropout": 1.5}, "embedder.dropout=1.5"),
        ({"embedding_dim": 0}, "embedder.embedding_dim=0"),
        ({"std": [0.0]}, "embedder.std"),
        ({"mean": [math.nan]}, "embedder.mean"),
        ({"mean": [0.1, 0.2, 0.3]}, "embedder.mean has 3 values for images of 1 channels"),
    ],
)
def test_errors_name_values_out_of_range(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_embedder(**values)

"""Weights from a file: reading without code execution, and comparison with the backbone."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from arcloop.errors import ConfigError
from arcloop.models import ConvNet, IResNet, compare_weights, load_weights, read_weights

FILE = Path("some.pt")


def convnet(seed: int = 0, channels: int = 1, widths: list[int] | None = None) -> ConvNet:
    torch.manual_seed(seed)
    return ConvNet(in_channels=channels, widths=widths or [4, 8], depth=1)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def in_module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"embedder.backbone.{n}": w for n, w in state.items()} | {
        "embedder.norm.weight": torch.ones(3), "head.weight": torch.ones(2, 2),
    }  # fmt: skip


def dino(state: dict[str, Tensor], trained: str) -> dict[str, object]:
    """A checkpoint of DINO's main_dino.py, with the weights in the network `trained`."""
    other = {f"module.backbone.{n}": w + 1 for n, w in state.items()}
    same = {f"backbone.{n}": w for n, w in state.items()} | {"head.mlp.0.weight": torch.ones(2, 2)}
    student = {f"module.{n}": w for n, w in same.items()} if trained == "student" else other
    return {"student": student, "teacher": same, "args": argparse.Namespace(arch="vit"), "epoch": 1}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{n}": w for n, w in state.items()}},
        lambda state: {"state_dict": in_module(state), "global_step": 7},
        lambda state: {"state_dict": {f"model.backbone.{n}": w for n, w in state.items()}},
        lambda state: dino(state, "teacher"),
        lambda state: {"student": dino(state, "student")["student"], "epoch": 3},
        lambda state: {
            **{f"student.{n}": w + 1 for n, w in state.items()},
            **{f"teacher.backbone.{n}": w for n, w in state.items()},
        },
    ],
    ids=[
        "plain",
        "state_dict",
        "model",
        "DDP",
        "state_dict of DDP",
        "checkpoint",
        "Lightning",
        "DINO",
        "student",
        "DINO in one dict",
    ],
)
def test_all_file_formats_load_into_the_backbone(tmp_path: Path, wrapped) -> None:
    state, file, target = convnet(seed=1).state_dict(), tmp_path / "weights.pt", convnet(seed=2)
    torch.save(wrapped(state), file)
    assert load_weights(target, read_weights(file), file=file, strict=True).is_complete
    assert_same(dict(target.state_dict()), dict(state))


def test_safetensors(tmp_path: Path) -> None:
    state = convnet(seed=1).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path / "weights.safetensors"), dict(state))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_no_code_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1), "more": Evil()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(ConfigError, match="objects other than weights"):
            read_weights(Path(name))
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_with_another_format_raises_a_config_error(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    with pytest.raises(ConfigError, match="cannot read the weights: ") as caught:
        read_weights(file)
    assert str(file) in str(caught.value)
    for content in (b"", b"abc", b"PK\x03\x04 and no more"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"cannot read the weights: \w"):
            read_weights(file)


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"state_dict": {"a": 1}}, torch.ones(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="contains no state dict"):
        read_weights(tmp_path / "w.pt")


def test_fitting_weights_are_loaded_completely() -> None:
    source, target = convnet(seed=1), convnet(seed=2)
    found = load_weights(target, source.state_dict(), file=FILE, strict=True)
    assert found.is_complete
    assert str(found) == "12 of 12 tensors fit"
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


def test_num_batches_tracked_may_be_missing() -> None:
    source = convnet(seed=1).state_dict()
    old = {n: w for n, w in source.items() if not n.endswith("num_batches_tracked")}
    target = convnet(seed=2)
    assert load_weights(target, old, file=FILE, strict=True).is_complete
    assert torch.equal(target.state_dict()["stages.1.0.weight"], source["stages.1.0.weight"])


def other_state() -> dict[str, Tensor]:
    """A tensor with another shape, a missing one and an unexpected one."""
    state = dict(convnet(seed=1, channels=3).state_dict())
    del state["stages.1.2.bias"]
    return state | {"fc.weight": torch.ones(2)}


def test_mismatches_are_reported_and_the_backbone_is_unchanged() -> None:
    target = convnet(seed=2)
    before = {n: w.clone() for n, w in target.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_weights(target, other_state(), file=FILE, strict=True)
    for part in (
        "10 of 12 tensors fit", "missing (1): stages.1.2.bias", "unexpected (1): fc.weight",
        "wrong shape (1): stages.0.0.weight 4x3x3x3, not 4x1x3x3", "some.pt", "strict=false",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert_same(dict(target.state_dict()), before)


def test_fitting_tensors_are_loaded_if_not_strict() -> None:
    target, before = convnet(seed=2), convnet(seed=2).state_dict()
    state = other_state()
    found = load_weights(target, state, file=FILE, strict=False)
    after = target.state_dict()
    assert len(found.fitting) == 10
    for name in found.fitting:
        assert torch.equal(after[name], state[name])
    for name in ("stages.1.2.bias", "stages.0.0.weight"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("strict", [True, False])
def test_an_error_is_raised_if_no_tensor_fits(strict: bool) -> None:
    net = IResNet(in_channels=1, layers=[1], widths=[4])
    with pytest.raises(ConfigError, match="no tensor in this file fits the backbone"):
        load_weights(net, convnet().state_dict(), file=FILE, strict=strict)


def test_a_long_list_of_names_is_shortened() -> None:
    found = compare_weights({}, convnet(widths=[2, 2, 2, 2]))
    assert "0 of 20 tensors fit" in str(found)
    assert " and 16 more" in str(found)


class Published(nn.Module):
    """IResNet with the layer names of insightface, including its neck."""

    def __init__(self, layers: list[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(8), nn.PReLU(8)
        for number, count in enumerate(layers, start=1):
            blocks = [PublishedBlock(2 if block == 0 else 1) for block in range(count)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.bn2, self.fc, self.features = nn.BatchNorm2d(8), nn.Linear(8, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        return self.layer2(self.layer1(x))


class PublishedBlock(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(8) for _ in range(3))
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, stride, padding=1, bias=False)
        self.prelu = nn.PReLU(8)
        self.downsample = None
        if stride == 2:
            self.downsample = nn.Sequential(
                nn.Conv2d(8, 8, 1, stride, bias=False), nn.BatchNorm2d(8)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(out)) + (x if self.downsample is None else self.downsample(x))


@torch.no_grad()
def test_weights_of_insightface_are_translated() -> None:
    torch.manual_seed(1)
    published = Published([2, 1])
    for name, tensor in published.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.uniform_(0.5, 1.5)
    net = IResNet(in_channels=3, layers=[2, 1], widths=[8, 8])
    assert load_weights(net, published.state_dict(), file=FILE, strict=True).is_complete
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net.eval()(pixels), published.eval()(pixels))

"""Models of timm, compared with timm itself."""

import importlib.util
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arcloop.errors import ConfigError
from arcloop.models import Embedder, Lora, TimmBackbone, load_weights
from arcloop.models.backbones.timm_import import import_timm

RESNET, VIT, MOBILE = "test_resnet.r160_in1k", "test_vit", "mobilenetv3_small_050"


def make(model: str = RESNET, channels: int = 3, size: int = 32, **options: object) -> TimmBackbone:
    return TimmBackbone(
        in_channels=channels, image_size=(size, size), model=model, options=dict(options),
        grad_checkpointing=False, lora=Lora(rank=0, alpha=1.0, dropout=0.0, modules=[]),
    )  # fmt: skip


def published(model: str, size: int | None = None) -> nn.Module:
    """A model as timm publishes it: three channels, its default size, a classifier."""
    sized = {} if size is None else {"img_size": size}
    return import_timm().create_model(model, num_classes=1000, **sized)


def loaded_by_timm(model: str, state: dict[str, Tensor], channels: int, **sized: int) -> nn.Module:
    return import_timm().create_model(
        model, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, num_classes=0,
        in_chans=channels, **sized,
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("model", "sized"), [(RESNET, {}), (VIT, {"img_size": 32}), (MOBILE, {})])
def test_published_weights_give_the_features_of_timm(
    model: str, sized: dict[str, int], channels: int
) -> None:
    state = dict(published(model).state_dict())
    backbone = make(model, channels).eval()
    found = load_weights(backbone, state, file=Path("published.pt"), strict=True)
    pixels = torch.randn(2, channels, 32, 32)
    expected = loaded_by_timm(model, dict(state), channels, **sized).eval()(pixels)
    assert found.is_complete
    torch.testing.assert_close(backbone(pixels)[:, :, 0, 0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("model", "channels"), [(RESNET, 1), (VIT, 3), (MOBILE, 1)])
def test_scripted_equals_eager_after_saving(model: str, channels: int) -> None:
    embedder = Embedder(
        make(model, channels), image_shape=(32, 32, channels), embedding_dim=8, dropout=0.0,
        mean=[0.5], std=[0.5],
    ).eval()  # fmt: skip
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(embedder), file)
    file.seek(0)
    pixels = torch.randint(0, 256, (3, channels, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(torch.jit.load(file)(pixels), embedder(pixels), rtol=0, atol=1e-5)


def test_options_are_passed_to_the_model() -> None:
    rates = {m.drop_prob for m in make(drop_path_rate=0.5).modules() if hasattr(m, "drop_prob")}
    assert max(rates) == 0.5
    with pytest.raises(TypeError, match="no_such_option"):
        make(no_such_option=1)


def test_construction_on_the_meta_device() -> None:
    with torch.device("meta"):
        backbone = make("vit_base_patch16_224", 1, 224)
    assert all(p.is_meta for p in backbone.parameters())


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("reznet50", "resnet50"),
        ("resnet50.a1_in1kk", "did you mean resnet50.a1_in1k "),
        ("mobilenet_v3_small_050", "mobilenetv3_small_050"),
        ("hf-hub:timm/resnet18", "has no model"),
        ("", "has no model"),
    ],
)
def test_an_unknown_name_raises_an_error_with_the_nearest_names(model: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest) as caught:
        make(model)
    assert "backbone.model" in str(caught.value)


def test_a_missing_timm_raises_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"timm is not installed[^$]*arcloop\[timm\]"):
        make()

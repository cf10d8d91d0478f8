from functools import partial

import pytest
import torch
from torch import nn

from arcloop.errors import ConfigError
from arcloop.models import ArcFace, ConvNet, Embedder, Lora, TimmBackbone
from arcloop.models.backbones.timm_import import import_timm
from arcloop.training.optim import make_optimizer, parameter_groups

SGD = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
RATES = {
    "lr": 0.1, "weight_decay": 0.01, "head_lr": 0.3, "head_weight_decay": 0.02,
    "backbone_lr_factor": 1.0, "layer_decay": 1.0,
}  # fmt: skip


def make_modules() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    backbone = ConvNet(in_channels=1, widths=[4], depth=1)
    embedder = Embedder(
        backbone, image_shape=(8, 8, 1), embedding_dim=4, dropout=0.0, mean=[0.0], std=[1.0]
    )
    head = ArcFace(embedding_dim=4, num_classes=3, margin=0.1, scale=8.0, easy_margin=False,
                   size_margin=0.0, size_power=0.25)  # fmt: skip
    return embedder, head


def test_every_trainable_parameter_is_in_one_group() -> None:
    embedder, head = make_modules()
    optimizer = make_optimizer(embedder, head, factory=SGD, **RATES)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for m in (embedder, head) for p in m.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(map(id, trainable))


def test_groups_have_separate_rates_and_only_kernels_and_matrices_have_weight_decay() -> None:
    embedder, head = make_modules()
    optimizer = make_optimizer(embedder, head, factory=SGD, **RATES)
    found = {
        group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    assert found == {"embedder": (0.1, 0.01), "embedder_no_decay": (0.1, 0), "head": (0.3, 0.02)}
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in embedder.named_parameters():
        if parameter.requires_grad:
            kernel = "weight" in name and parameter.ndim in (2, 4)
            assert decays[id(parameter)] == (0.01 if kernel else 0.0), name


def test_module_without_kernels_has_no_empty_group() -> None:
    (group,) = parameter_groups("norm", nn.BatchNorm2d(3).parameters(), lr=0.1, weight_decay=0.5)
    assert group["name"] == "norm_no_decay"
    assert parameter_groups("none", [], lr=0.1, weight_decay=0.5) == []


@pytest.mark.parametrize("factory", [SGD, torch.optim.AdamW])
def test_steps_decrease_the_loss(factory: type[torch.optim.Optimizer]) -> None:
    embedder, head = make_modules()
    rates = RATES | {"lr": 0.01, "head_lr": 0.01}
    optimizer = make_optimizer(embedder, head, factory=factory, **rates)
    pixels, labels = torch.rand(16, 1, 8, 8) * 255, torch.arange(16) % 3
    losses = []
    for _ in range(20):
        loss = head(embedder.features(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("key", sorted(RATES))
def test_values_out_of_range_are_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{key}=-1"):
        make_optimizer(*make_modules(), factory=SGD, **(RATES | {key: -1}))


def tuned(model: str) -> Embedder:
    backbone = TimmBackbone(
        in_channels=3, image_size=(32, 32), model=model, options={}, grad_checkpointing=False,
        lora=Lora(rank=0, alpha=1.0, dropout=0.0, modules=[]),
    )  # fmt: skip
    return Embedder(
        backbone, image_shape=(32, 32, 3), embedding_dim=4, dropout=0.0, mean=None, std=None
    )


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_resnet"])
def test_layer_decay_gives_the_rates_and_weight_decays_of_timm(model: str) -> None:
    """Compared with timm's own groups of the model with its classifier."""
    whole = import_timm().create_model(model, num_classes=5)
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(
        whole, 0.01, no_weight_decay_list=getattr(whole, "no_weight_decay", set)(), layer_decay=0.7
    )
    in_timm = {
        id(p): (0.1 * 0.5 * group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    expected = {n: in_timm[id(p)] for n, p in whole.named_parameters()}

    embedder, head = tuned(model), nn.Linear(4, 3)
    rates = RATES | {"backbone_lr_factor": 0.5, "layer_decay": 0.7}
    optimizer = make_optimizer(embedder, head, factory=SGD, **rates)
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in embedder.backbone.model.named_parameters():
        assert found[id(parameter)] == pytest.approx(expected[name]), name
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)
    assert found[id(embedder.neck[3].weight)] == (0.1, 0.01)
    assert found[id(head.weight)] == (0.3, 0.02)


def test_factor_changes_the_rate_of_any_backbone() -> None:
    embedder, head = make_modules()
    optimizer = make_optimizer(embedder, head, factory=SGD, **(RATES | {"backbone_lr_factor": 0.1}))
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found == pytest.approx({
        "embedder": 0.1, "embedder_no_decay": 0.1, "backbone": 0.01, "backbone_no_decay": 0.01,
        "head": 0.3,
    })  # fmt: skip
    with pytest.raises(ConfigError, match=r"ConvNet does not define[\s\S]*layer_decay=0.5"):
        make_optimizer(embedder, head, factory=SGD, **(RATES | {"layer_decay": 0.5}))

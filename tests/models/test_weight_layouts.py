"""Weights in the layouts of DINO, DINOv2, CLIP and transformers, loaded into models of timm.

Each file is written from a random model of timm, with the names that the layout has where it is
published; the loaded backbone must have the features of that model.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from arcloop.errors import ConfigError
from arcloop.models import Embedder, Lora, TimmBackbone, load_weights, read_weights
from arcloop.models.backbones.timm_import import import_timm

State = dict[str, Tensor]
PIXELS = torch.linspace(0, 40, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)
CLIP = {"pre_norm": True}
DINOV2 = {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True}


def make(model: str, size: int = 32, *, checkpointing: bool = False, **options) -> TimmBackbone:
    return TimmBackbone(
        in_channels=3, image_size=(size, size), model=model, options=options,
        grad_checkpointing=checkpointing,
        lora=Lora(rank=0, alpha=1.0, dropout=0.0, modules=[]),
    ).eval()  # fmt: skip


def random_model(model: str, **options) -> nn.Module:
    """A model whose classifier is not loaded, and whose every weight changes the features."""
    torch.manual_seed(0)
    made = import_timm().create_model(model, num_classes=5, **options).eval()
    for name, weight in made.named_parameters():
        nn.init.normal_(weight, 1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return made


def renamed(state: State, *rules: tuple[str, str]) -> State:
    for pattern, name in rules:
        state = {re.sub(pattern, name, old): value for old, value in state.items()}
    return state


def split_qkv(state: State, pattern: str) -> State:
    """Replace each attn.qkv by three tensors; the pattern has {} for the position and the kind."""
    parts = {}
    for name, value in state.items():
        found = re.fullmatch(r"(.*)\.attn\.qkv\.(\w+)", name)
        if found is None:
            parts[name] = value
        else:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                parts[f"{found[1]}.{pattern.format(letter)}.{found[2]}"] = part.clone()
    return parts


def openai_clip(state: State) -> State:
    """The vision tower of OpenAI's CLIP and of OpenCLIP, with a part of the text tower."""
    visual = renamed(
        {n: w for n, w in state.items() if not n.startswith("head.")},
        (r"^patch_embed\.proj\.", "conv1."), ("^cls_token$", "class_embedding"),
        ("^pos_embed$", "positional_embedding"), (r"^norm_pre\.", "ln_pre."),
        (r"^norm\.", "ln_post."), (r"^blocks\.", "transformer.resblocks."),
        (r"\.norm([12])\.", r".ln_\1."), (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj\.", "attn.out_proj."), (r"mlp\.fc1\.", "mlp.c_fc."),
        (r"mlp\.fc2\.", "mlp.c_proj."),
    )  # fmt: skip
    visual["class_embedding"] = visual["class_embedding"].flatten()
    visual["positional_embedding"] = visual["positional_embedding"][0]
    visual["proj"] = torch.ones(64, 32)
    text = {"token_embedding.weight": torch.ones(9, 4), "logit_scale": torch.ones(())}
    return {f"visual.{name}": value for name, value in visual.items()} | text


def transformers_clip(state: State) -> State:
    """`CLIPModel` of the transformers library."""
    vision = renamed(
        split_qkv({n: w for n, w in state.items() if not n.startswith("head.")},
                  "self_attn.{}_proj"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
        ("^cls_token$", "embeddings.class_embedding"),
        ("^pos_embed$", "embeddings.position_embedding.weight"),
        (r"^norm_pre\.", "pre_layrnorm."), (r"^norm\.", "post_layernorm."),
        (r"^blocks\.", "encoder.layers."), (r"\.norm([12])\.", r".layer_norm\1."),
        (r"\.attn\.proj\.", ".self_attn.out_proj."),
    )  # fmt: skip
    vision["embeddings.class_embedding"] = vision["embeddings.class_embedding"].flatten()
    positions = vision["embeddings.position_embedding.weight"][0]
    vision["embeddings.position_embedding.weight"] = positions
    vision["embeddings.position_ids"] = torch.arange(len(positions))[None]
    text = {"text_model.embeddings.token_embedding.weight": torch.ones(9, 4)}
    text["visual_projection.weight"] = torch.ones(4, 64)
    return {f"vision_model.{name}": value for name, value in vision.items()} | text


def dinov2(state: State) -> State:
    """The published files of DINOv2 with registers: one position embedding for the class token."""
    state = {n: w for n, w in state.items() if not n.startswith("head.")}
    position = torch.full((1, 1, 64), 0.3)
    state["register_tokens"] = state.pop("reg_token")
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.zeros(1, 64)}


def transformers_dinov2(state: State) -> State:
    """`Dinov2WithRegistersModel` of the transformers library."""
    return renamed(
        split_qkv(dinov2(state), "attention.attention.{}"),
        (r"\.attention\.attention\.q\.", ".attention.attention.query."),
        (r"\.attention\.attention\.k\.", ".attention.attention.key."),
        (r"\.attention\.attention\.v\.", ".attention.attention.value."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"^norm\.", "layernorm."), (r"^blocks\.", "encoder.layer."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        ("^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
        ("^pos_embed$", "embeddings.position_embeddings"),
    )  # fmt: skip


def dinov2_training(state: State) -> State:
    """The teacher of a DINOv2 training: blocks in chunks of four, and its head."""
    chunked = {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 4}.{m[1]}", name): value
        for name, value in dinov2(state).items()
    }
    return {f"backbone.{n}": w for n, w in chunked.items()} | {"dino_head.w": torch.ones(2)}


def transformers_vit(state: State) -> State:
    """`ViTForImageClassification` of the transformers library."""
    names = renamed(
        split_qkv({n: w for n, w in state.items() if not n.startswith("head.")}, "x.{}"),
        (r"^norm\.", "layernorm."), (r"\.x\.q\.", ".attention.attention.query."),
        (r"\.x\.k\.", ".attention.attention.key."), (r"\.x\.v\.", ".attention.attention.value."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense."),
        (r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
        (r"^blocks\.", "encoder.layer."), ("^cls_token$", "embeddings.cls_token"),
        ("^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    )  # fmt: skip
    return {f"vit.{n}": w for n, w in names.items()} | {"classifier.bias": torch.ones(5)}


def facebook_convnext(state: State) -> State:
    """The published files of ConvNeXt, whose linear layers are named pwconv."""
    return renamed(
        state,
        (r"^stem\.", "downsample_layers.0."), (r"\.blocks\.(\d+)\.", r".\1."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"\.conv_dw\.", ".dwconv."), (r"\.mlp\.fc", ".pwconv"),
        (r"^head\.norm\.", "norm."), (r"^head\.fc\.", "head."),
    )  # fmt: skip


LAYOUTS: dict[str, tuple[str, dict[str, object], Callable[[State], object]]] = {
    "OpenAI CLIP": ("test_vit", CLIP, openai_clip),
    "CLIP of transformers": ("test_vit", CLIP, transformers_clip),
    "OpenCLIP with a timm tower": (
        "test_vit", {}, lambda s: {f"visual.trunk.{n}": w for n, w in s.items()}
    ),
    "DINO with module.backbone": (
        "test_vit", {}, lambda s: {"student": {f"module.backbone.{n}": w for n, w in s.items()}}
    ),
    "DINOv2": ("test_vit", DINOV2, dinov2),
    "DINOv2 of transformers": ("test_vit", DINOV2, transformers_dinov2),
    "DINOv2 training": ("test_vit", DINOV2, lambda s: {"teacher": dinov2_training(s)}),
    "ViT of transformers": ("test_vit", {}, transformers_vit),
    "ConvNeXt of Facebook": ("test_convnext", {}, facebook_convnext),
    "ConvNeXt of Lightning": (
        "test_convnext", {}, lambda s: {"state_dict": {f"model.{n}": w for n, w in s.items()}}
    ),
    "ResNet of DINO": ("test_resnet", {}, lambda s: {f"backbone.{n}": w for n, w in s.items()}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_loaded_backbone_has_the_features_of_the_source(tmp_path: Path, layout: str) -> None:
    model, options, write = LAYOUTS[layout]
    sized = {"img_size": 32} if model == "test_vit" else {}
    source = random_model(model, **options, **sized)
    content, file = write(dict(source.state_dict())), tmp_path / "weights.pt"
    torch.save(content, file)
    backbone = make(model, **options)
    assert load_weights(backbone, read_weights(file), file=file, strict=True).is_complete
    expected = source.forward_head(source.forward_features(PIXELS), pre_logits=True)
    torch.testing.assert_close(backbone(PIXELS)[:, :, 0, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_position_embeddings_are_resized_to_the_image_size(tmp_path: Path, prefix: str) -> None:
    """The grid of 10x10 patches becomes 2x3; the class token keeps its embedding."""
    source, file = random_model("test_vit"), tmp_path / "weights.safetensors"
    state = {prefix + n: w for n, w in source.state_dict().items() if "head" not in n}
    save_file(state, file)
    backbone = TimmBackbone(
        in_channels=3, image_size=(32, 48), model="test_vit", options={},
        grad_checkpointing=False, lora=Lora(rank=0, alpha=1.0, dropout=0.0, modules=[]),
    )  # fmt: skip
    assert load_weights(backbone, read_weights(file), file=file, strict=True).is_complete
    grid = source.pos_embed.detach()[:, 1:].view(1, 10, 10, 64).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, (2, 3), mode="bicubic", antialias=True)
    expected = torch.cat([source.pos_embed[:, :1], resized.flatten(2).mT], dim=1)
    torch.testing.assert_close(backbone.model.pos_embed, expected)


def test_what_does_not_fit_is_listed_in_one_error(tmp_path: Path) -> None:
    file = tmp_path / "vit.pt"
    torch.save(openai_clip(dict(random_model("test_vit", pre_norm=True).state_dict())), file)
    with pytest.raises(ConfigError, match="no tensor in this file fits"):
        load_weights(make("test_resnet"), read_weights(file), file=file, strict=True)
    with pytest.raises(ConfigError) as caught:  # without pre_norm, as for a ViT of timm
        load_weights(make("test_vit"), read_weights(file), file=file, strict=True)
    for part in ("77 of 78 tensors fit", "missing (1): model.patch_embed.proj.bias",
                 "unexpected (2): model.norm_pre.weight", "strict=false"):  # fmt: skip
        assert part in str(caught.value)


def test_a_torchscript_archive_is_refused_with_the_conversion(tmp_path: Path) -> None:
    """OpenAI publishes CLIP in this format."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with (
        pytest.warns(UserWarning, match="TorchScript archive"),
        pytest.raises(ConfigError, match=r"torch.save\(torch.jit.load"),
    ):
        read_weights(tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize(
    ("channels", "mean"), [(3, [0.485, 0.456, 0.406]), (1, [(0.485 + 0.456 + 0.406) / 3])]
)
def test_images_are_normalised_as_the_published_weights_expect(channels, mean) -> None:
    backbone = TimmBackbone(
        in_channels=channels, image_size=(32, 32), model="mobilenetv3_small_050", options={},
        grad_checkpointing=False, lora=Lora(rank=0, alpha=1.0, dropout=0.0, modules=[]),
    )  # fmt: skip
    shape = {"image_shape": (32, 32, channels), "embedding_dim": 4, "dropout": 0.0}
    embedder = Embedder(backbone, **shape, mean=None, std=[0.2])
    found = embedder.normalisation()
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["std"] == pytest.approx([0.2] * channels, abs=1e-6)
    assert "224x224" in backbone.cautions()[0]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("vit_tiny_patch16_224", {"size": 40}, "patches of 16x16 pixels, and 40x40 is not"),
        ("vit_small_patch14_dinov2", {"size": 32}, r"data.image_size=\[28,28\]"),
        ("inception_v4", {"checkpointing": True}, "inception_v4 does not support gradient check"),
    ],
)
def test_what_a_model_cannot_do_is_an_error(model, arguments, message) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        make(model, **arguments)


def test_gradient_checkpointing_does_not_change_the_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = make("test_vit", checkpointing=checkpointing).train()
        backbone(PIXELS).square().sum().backward()
        assert backbone.model.grad_checkpointing == checkpointing
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)

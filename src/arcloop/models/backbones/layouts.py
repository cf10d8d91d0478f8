"""Names of the weights of vision transformers in files of Hugging Face and of DINOv2.

timm converts the layouts of OpenAI's CLIP, OpenCLIP and DINOv2, but not those of the transformers
library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_RENAMED = (
    (r"^embeddings\.(class_embedding|cls_token)$", "cls_token"),
    (r"^embeddings\.(mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.(position_embedding\.weight|position_embeddings)$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),  # the spelling of transformers
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^encoder\.layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.(layer_norm1|layernorm_before)\.", ".norm1."),
    (r"\.(layer_norm2|layernorm_after)\.", ".norm2."),
    (r"\.(self_attn\.out_proj|attention\.output\.dense)\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
"""Patterns of the transformers library (CLIP, DINOv2, ViT) -> names of DINOv2 and timm."""
_UNUSED = re.compile(r"(pooler|classifier)\.|embeddings\.position_ids$")
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_PART = re.compile(r"\.attn\.q\.(weight|bias)$")


def to_timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a vision transformer to the names of timm.

    Args:
        state: A state dict of the vision model of transformers' CLIP, DINOv2 or ViT, or of
            DINOv2's training, whose blocks are in chunks (`blocks.0.11.`). Other names are kept.

    Returns:
        Name to tensor, with query, key and value in one tensor.
    """
    if "cls_token" in state:
        return {_CHUNK.sub(r"blocks.\1.", name): value for name, value in state.items()}
    if not any(name.startswith("embeddings.patch_embedding") for name in state):
        return dict(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not _UNUSED.match(name):
            for pattern, replacement in _RENAMED:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
    for name in [name for name in renamed if _PART.search(name)]:
        kind = name.rpartition(".")[2]
        parts = [name.removesuffix(f"q.{kind}") + f"{part}.{kind}" for part in "qkv"]
        if all(part in renamed for part in parts):
            fused = torch.cat([renamed.pop(part) for part in parts])
            renamed[name.removesuffix(f"q.{kind}") + f"qkv.{kind}"] = fused
    if "cls_token" in renamed:
        renamed["cls_token"] = renamed["cls_token"].view(1, 1, -1)
    if "pos_embed" in renamed and renamed["pos_embed"].ndim == 2:
        renamed["pos_embed"] = renamed["pos_embed"][None]
    return renamed

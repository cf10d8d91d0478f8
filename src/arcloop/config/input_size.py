"""`${input_size:112}`: the image size that the weights of the chosen backbone were trained with."""

from __future__ import annotations

import functools
from typing import Any

from omegaconf import DictConfig, OmegaConf


def register_input_size() -> None:
    """Register the resolver with OmegaConf."""
    if not OmegaConf.has_resolver("input_size"):
        OmegaConf.register_new_resolver("input_size", _of_backbone)


def _of_backbone(default: int, *, _root_: DictConfig) -> Any:
    """Return the size for `data.image_size`, and `default` for backbones without published weights.

    These are the backbones without a key `model`; the class of the others has a static method
    `input_size`. Only the latter import torch.
    """
    backbone = _root_.get("backbone")
    if backbone is None or "model" not in backbone or OmegaConf.is_missing(backbone, "model"):
        return default
    return _published(str(backbone._target_), str(backbone.model)) or default


@functools.cache
def _published(target: str, model: str) -> Any:
    from hydra.utils import get_class

    try:
        find = getattr(get_class(target), "input_size", None)
    except Exception:  # noqa: BLE001 - the check of the config reports a class that does not exist
        return None
    return find(model) if find is not None else None

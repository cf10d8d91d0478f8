"""Any image model of timm (PyTorch Image Models, github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.errors import ConfigError
from arcloop.models.backbones.torchvision_stub import torchvision_or_stand_in


class TimmBackbone(nn.Module):
    """A model of timm without its classifier: its pooled features as a map of one pixel.

    Nothing is downloaded: weights start at random, or come from a file (`backbone_weights.file`).

    Args:
        in_channels: Channels of the image.
        image_size: (height, width) of the image; models made for one size (ViT, Swin) are made for
            this one.
        model: Name of the model, with or without the tag of its weights.
        options: Further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}.

    Raises:
        ConfigError: timm is not installed, or has no such model.
    """

    @checked("backbone")
    def __init__(
        self,
        *,
        in_channels: PositiveInt,
        image_size: tuple[PositiveInt, PositiveInt],
        model: str,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        timm = import_timm()
        _require_known(timm, model)
        self._published = timm.get_pretrained_cfg(model).to_dict()
        sized = {"img_size": tuple(image_size)} if self._published["fixed_input_size"] else {}
        self.model: nn.Module = timm.create_model(
            model,
            pretrained=False,
            in_chans=in_channels,
            num_classes=0,
            scriptable=True,
            exportable=True,
            **{**sized, **options},
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, features, 1, 1]."""
        features_BC: Tensor = self.model(x_BCHW)
        return features_BC[:, :, None, None]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn weights as timm publishes them into those of this model.

        As timm does when it loads them: names of older files are mapped, the classifier is left
        out, weights of the first convolution are summed or spread over other channels, position
        embeddings are resampled to the image size.

        Args:
            state: A state dict of this class (returned as it is) or of timm's model.
        """
        if any(name.startswith("model.") for name in state):
            return dict(state)
        adapted = dict(state)
        # By timm's convention each file of models has its filter under this name, or has none.
        adapt = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            adapted = adapt(adapted, self.model)
        for name in _listed(self._published.get("first_conv")):
            self._adapt_first(adapted, f"{name}.weight")
        for name in _listed(self._published.get("classifier")):
            for part in ("weight", "bias"):
                adapted.pop(f"{name}.{part}", None)
        return {f"model.{name}": value for name, value in adapted.items()}

    def _adapt_first(self, state: dict[str, Tensor], name: str) -> None:
        from timm.models import adapt_input_conv

        own = self.model.state_dict().get(name)
        if own is None or name not in state or state[name].shape == own.shape:
            return
        if own.ndim == state[name].ndim == 4:
            state[name] = adapt_input_conv(own.shape[1], state[name])


def import_timm() -> Any:
    """Import timm, on a machine with or without torchvision.

    Raises:
        ConfigError: timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            "timm is not installed",
            where="backbone=timm",
            remedy="pip install 'arcloop[timm]', or where torchvision cannot be had"
            " `pip install --no-deps timm`",
        )
    if "timm" not in sys.modules:
        with torchvision_or_stand_in():
            import timm
    import timm

    return timm


def _require_known(timm: Any, model: str) -> None:
    name, _, tag = model.partition(".")
    names = timm.list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
    elif tag and model not in (tagged := timm.list_pretrained(f"{name}.*")):
        near = difflib.get_close_matches(model, tagged, n=3)
    else:
        return
    hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
    raise ConfigError(f"timm has no model {model!r}", where="backbone.model", remedy=hint)


def _listed(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())

"""Image models of timm (PyTorch Image Models, github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from arcloop.config.value_types import PositiveInt, checked
from arcloop.errors import ConfigError


class TimmBackbone(nn.Module):
    """A model of timm without its classifier; the pooled features are a map of one pixel.

    No weights are downloaded: they are random, or loaded from a file (`backbone_weights.file`).

    Args:
        in_channels: Channels of the image.
        image_size: (height, width) of the image, used by models with a fixed size (ViT, Swin).
        model: Name of the model, optionally with the tag of its weights.
        options: Further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}.

    Raises:
        ConfigError: timm is not installed, or has no model of this name.
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
        names = timm.list_pretrained() if "." in model else timm.list_models()
        if model not in names:
            near = difflib.get_close_matches(model, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
            raise ConfigError(f"timm has no model {model!r}", where="backbone.model", remedy=hint)
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
        """Convert weights in the format that timm publishes.

        Applies the steps that timm applies to pretrained weights: rename the tensors of older
        files, remove the classifier, adapt the first convolution to the number of channels, and
        resample the position embeddings to the image size.

        Args:
            state: A state dict of timm's model, or of this class, which is returned unchanged.

        Returns:
            A state dict of this class.
        """
        if any(name.startswith("model.") for name in state):
            return dict(state)
        from timm.models import adapt_input_conv

        adapted = dict(state)
        # A module of timm that needs a conversion defines it under this name.
        adapt = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            adapted = adapt(adapted, self.model)
        own = self.model.state_dict()
        for name in _listed(self._published.get("first_conv"), "weight"):
            if name in own and name in adapted and own[name].ndim == adapted[name].ndim == 4:
                adapted[name] = adapt_input_conv(own[name].shape[1], adapted[name])
        for name in _listed(self._published.get("classifier"), "weight", "bias"):
            adapted.pop(name, None)
        return {f"model.{name}": value for name, value in adapted.items()}


def import_timm() -> Any:
    """Import timm, with or without torchvision.

    Raises:
        ConfigError: timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            "timm is not installed",
            where="backbone=timm",
            remedy="pip install 'arcloop[timm]', or without torchvision"
            " `pip install --no-deps timm`",
        )
    with contextlib.nullcontext() if "timm" in sys.modules else torchvision_or_stub():
        import timm
    return timm


def _listed(modules: str | tuple[str, ...] | None, *parameters: str) -> list[str]:
    """Return the full names of these parameters in one module or several ones."""
    names = (modules,) if isinstance(modules, str) else modules or ()
    return [f"{name}.{parameter}" for name in names for parameter in parameters]


@contextlib.contextmanager
def torchvision_or_stub() -> Iterator[None]:
    """Make `import torchvision` work within the context, with a stub if it cannot be imported.

    timm imports torchvision for transforms and datasets that arcloop does not use. torchvision is a
    compiled package that must match the build of torch exactly, and importing it fails otherwise.
    The stub has a placeholder for every name, which raises an ImportError when it is called. On
    exit the stub is removed from `sys.modules`, so that no other package imports it. timm requires
    torchvision: https://github.com/huggingface/pytorch-image-models/blob/main/pyproject.toml
    """
    try:
        import_module("torchvision.ops.misc")
    except (ImportError, RuntimeError, OSError):  # missing, or built for another torch
        _remove_torchvision()
    else:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _remove_torchvision()


def _remove_torchvision() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


class _Placeholder(type):
    """Metaclass of the placeholders, which can be subclassed and have attributes."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"{cls.__name__} needs torchvision, which cannot be imported here")


class _Finder(MetaPathFinder, Loader):
    """Import hook that finds every module below torchvision and loads a placeholder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        own = fullname.partition(".")[0] == "torchvision"
        return ModuleSpec(fullname, self, is_package=True) if own else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return _Placeholder(spec.name, (), {})

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a placeholder has no code."""

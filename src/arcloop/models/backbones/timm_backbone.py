"""Image models of timm (PyTorch Image Models, github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from arcloop.config.targets import require_extra
from arcloop.config.value_types import PositiveInt, checked
from arcloop.errors import ConfigError, first_line
from arcloop.models.backbones.layouts import to_timm_names
from arcloop.models.backbones.lora import Lora, merge_lora
from arcloop.models.backbones.timm_import import import_timm


class TimmBackbone(nn.Module):
    """A model of timm without its classifier; the pooled features are a map of one pixel.

    The weights are random until `load_weights` is called. An embedder without its own mean and std
    uses those of the published weights.

    Args:
        in_channels: Channels of the image.
        image_size: (height, width) of the image, used by models with a fixed size (ViT, Swin).
        model: Name of the model, optionally with the tag of its weights.
        options: Further arguments of `timm.create_model`, e.g. {"drop_path_rate": 0.1}.
        grad_checkpointing: Compute the activations again in the backward pass instead of storing
            them (Chen et al., arXiv 1604.06174).
        lora: Low-rank adapters, which `add_adapters` inserts.

    Raises:
        ConfigError: timm is not installed or has no model of this name, or the model does not
            support the image size or gradient checkpointing.
    """

    @checked("backbone")
    def __init__(
        self,
        *,
        in_channels: PositiveInt,
        image_size: tuple[PositiveInt, PositiveInt],
        model: str,
        options: dict[str, Any],
        grad_checkpointing: bool,
        lora: Lora,
    ) -> None:
        super().__init__()
        timm = import_timm()
        names = timm.list_pretrained() if "." in model else timm.list_models()
        if model not in names:
            near = difflib.get_close_matches(model, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
            raise ConfigError(f"timm has no model {model!r}", where="backbone.model", remedy=hint)
        self._name, self._image_size, self._lora = model, tuple(image_size), lora
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
        self._check_patches(timm.layers.PatchEmbed)
        self._checkpoints = grad_checkpointing
        if grad_checkpointing:
            self._checkpoint_gradients(enable=True)

    def _check_patches(self, patch_embed: type) -> None:
        """Check that the patches cover the image: timm ignores the pixels of an incomplete one."""
        embed: Any = getattr(self.model, "patch_embed", None)
        if not isinstance(embed, patch_embed) or embed.dynamic_img_pad:  # type: ignore[attr-defined]
            return
        sides = list(zip(self._image_size, embed.patch_size, strict=True))  # type: ignore[attr-defined]
        if any(side % patch for side, patch in sides):
            near = [max(1, round(side / patch)) * patch for side, patch in sides]
            raise ConfigError(
                f"{self._name} divides the image into patches of {_by(embed.patch_size)} pixels,"  # type: ignore[attr-defined]
                f" and {_by(self._image_size)} is not a multiple",
                where="backbone.model, data.image_size",
                remedy=f"prepare the images with data.image_size=[{near[0]},{near[1]}]",
            )

    def _checkpoint_gradients(self, *, enable: bool) -> None:
        try:
            self.model.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AttributeError, AssertionError) as cause:
            raise ConfigError(
                f"{self._name} does not support gradient checkpointing",
                where="backbone.grad_checkpointing=true",
                remedy="set it to false, or choose another model",
            ) from cause

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Feature map [B, features, 1, 1]."""
        features_BC: Tensor = self.model(x_BCHW)
        return features_BC[:, :, None, None]

    def normalisation(self, channels: int) -> tuple[list[float], list[float]]:
        """Return mean and std, for pixels from 0 to 1, that the published weights expect.

        For another number of channels than 3, they are averaged over the channels.

        Args:
            channels: Channels of the image.
        """
        both = (list(self._published["mean"]), list(self._published["std"]))
        mean, std = (v if channels == len(v) else [sum(v) / len(v)] for v in both)
        return mean, std

    @staticmethod
    def input_size(model: str) -> int | list[int] | None:
        """Return the image size that published weights were trained with, in pixels.

        Returns:
            One number, or [height, width] if they differ; None if timm is not installed or has no
            such model, which the constructor reports.
        """
        try:
            config = import_timm().get_pretrained_cfg(model)
        except (ConfigError, RuntimeError):
            return None
        if config is None:
            return None
        height, width = config.input_size[1:]
        return int(height) if height == width else [int(height), int(width)]

    def cautions(self) -> list[str]:
        """Return a note if the image size is not the one that the weights were trained with."""
        trained = self._published["input_size"][1:]
        if trained == self._image_size:
            return []
        note = (
            f"the published weights of {self._name} were trained with {_by(trained)} pixels;"
            f" these images have {_by(self._image_size)} (data.image_size)"
        )
        return [note]

    def add_adapters(self) -> str | None:
        """Insert the adapters of `lora`, if it has any; see `Lora.insert`."""
        return self._lora.insert(self.model) if self._lora.rank else None

    def prepare_export(self) -> None:
        """Merge adapters into the weights, and disable gradient checkpointing."""
        merge_lora(self.model)
        if self._checkpoints:
            self._checkpoint_gradients(enable=False)

    def layers(self) -> tuple[dict[str, int], int]:
        """Return name of parameter -> its layer, 0 for the stem, and the number of layers.

        The layers are those of timm's `param_groups_layer_decay`. The classifier, which is not part
        of the backbone, is the layer after the last one.
        """
        timm = import_timm()
        classifier = _listed(self._published.get("classifier"), "weight")
        names = [*(name for name, _ in self.model.named_parameters()), *classifier]
        matcher = self.model.group_matcher(coarse=False)  # type: ignore[operator]
        whole = SimpleNamespace(named_parameters=lambda: ((name, None) for name in names))
        found = timm.models.group_parameters(whole, matcher, reverse=True)
        top = max(found[name] for name in classifier) if classifier else max(found.values()) + 1
        return {f"model.{name}": found[name] for name in names if name not in classifier}, top

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that timm excludes from weight decay, e.g. position embeddings."""
        excluded = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in excluded()}

    def published_file(self) -> Path:
        """Return the file of the weights that timm publishes, in the cache; download it if needed.

        Raises:
            ConfigError: There are none for this model, or the hub cannot be reached.
        """
        require_extra("timm", "huggingface_hub", where="backbone_weights.pretrained=true")
        repository = self._published.get("hf_hub_id")
        if not repository:
            raise ConfigError(
                f"timm publishes no weights of {self._name} on the Hugging Face Hub",
                where="backbone_weights.pretrained=true",
                remedy="choose another backbone.model or tag, or set backbone_weights.file",
            )
        file = self._published.get("hf_hub_filename") or "model.safetensors"
        try:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(repository, file))
        except Exception as cause:  # the client raises types of several libraries
            raise ConfigError(
                f"cannot download {file} of {repository}: {first_line(cause)}",
                where="backbone_weights.pretrained=true",
                remedy=f"on a machine with access to huggingface.co run `hf download {repository}"
                f" {file} --local-dir .`, copy the file here, and set backbone_weights.file={file}"
                " instead",
            ) from cause

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert weights of timm, or in a layout that timm converts, to the names of this class.

        Applies the steps that timm applies to pretrained weights: rename the tensors of older
        files, of DINOv2 and of CLIP, remove the classifier, adapt the first convolution to the
        number of channels, and resample the position embeddings to the image size.

        Args:
            state: A state dict of the model of timm, or of a published file.

        Returns:
            A state dict of this class.
        """
        from timm.models import adapt_input_conv

        adapted = to_timm_names(state)
        # A module of timm that needs a conversion defines it under this name.
        adapt = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            # timm's conversions fail in various ways on names that they do not expect.
            with contextlib.suppress(
                AttributeError, LookupError, RuntimeError, TypeError, ValueError
            ):
                adapted = adapt(dict(adapted), self.model)
        own = self.model.state_dict()
        for name in _listed(self._published.get("first_conv"), "weight"):
            if name in own and name in adapted and own[name].ndim == adapted[name].ndim == 4:
                adapted[name] = adapt_input_conv(own[name].shape[1], adapted[name])
        for name in _listed(self._published.get("classifier"), "weight", "bias"):
            adapted.pop(name, None)
        return {f"model.{name}": value for name, value in adapted.items()}


def _listed(modules: str | tuple[str, ...] | None, *parameters: str) -> list[str]:
    """Return the full names of these parameters in one module or several ones."""
    names = (modules,) if isinstance(modules, str) else modules or ()
    return [f"{name}.{parameter}" for name in names for parameter in parameters]


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))

"""Load the weights of a backbone from a file, and report the tensors that do not fit."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from arcloop.errors import ConfigError, list_some

_WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "student")
"""Keys of the state dict in a file, preferred ones first."""
_PREFIXES = (
    "embedder.backbone.", "module.", "teacher.", "student.", "backbone.", "model.", "encoder.",
    "visual.", "trunk.", "vision_model.", "vit.", "dinov2.",
)  # fmt: skip
"""Prefixes of the backbone in DDP, Lightning, DINO, CLIP, and the transformers library."""
_OPTIONAL = ".num_batches_tracked"
"""Buffers that old files lack. No batch norm of arcloop depends on these counts."""
_LISTED = 4


@dataclass(frozen=True)
class WeightComparison:
    """Names and shapes in a state dict compared with those of a module.

    Attributes:
        fitting: Names in both, with the same shape.
        missing: Names only in the module.
        unexpected: Names only in the state dict.
        mismatched: Name, shape in the state dict, shape in the module.
    """

    fitting: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def is_complete(self) -> bool:
        """Whether all tensors of both fit."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [
            f"{name} {_shape(found)}, not {_shape(own)}" for name, found, own in self.mismatched
        ]
        count = len(self.fitting) + len(self.missing) + len(self.mismatched)
        lines = [f"{len(self.fitting)} of {count} tensors fit"]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": shapes}
        for kind, names in kinds.items():
            if names:
                lines.append(f"    {kind} ({len(names)}): {list_some(names, _LISTED)}")
        return "\n".join(lines)


def compare_weights(state: Mapping[str, Tensor], module: nn.Module) -> WeightComparison:
    """Compare the names and shapes of a state dict with those of a module.

    An uninitialised parameter, such as the weight of a sharded head, fits any shape.
    """
    own = module.state_dict(keep_vars=True)
    shapes = {n: state[n].shape if is_lazy(w) else w.shape for n, w in own.items() if n in state}
    both = list(shapes)
    return WeightComparison(
        fitting=[n for n in both if state[n].shape == shapes[n]],
        missing=[n for n in own if n not in state and not n.endswith(_OPTIONAL)],
        unexpected=[n for n in state if n not in own],
        mismatched=[
            (n, tuple(state[n].shape), tuple(shapes[n]))
            for n in both
            if state[n].shape != shapes[n]
        ],
    )


def load_weights(
    backbone: nn.Module, state: Mapping[str, Tensor], *, file: Path, strict: bool
) -> WeightComparison:
    """Copy weights into a backbone; on an error the backbone is unchanged.

    A backbone with a method `translate` converts the state dict first, so that it accepts published
    files with other names. See `fit_weights`.

    Args:
        backbone: The backbone to change.
        state: State dict from `read_weights`.
        file: File of the state dict, for error messages.
        strict: Whether all tensors must fit; otherwise the fitting ones are copied.

    Returns:
        The comparison of file and backbone.

    Raises:
        ConfigError: No tensor fits, or `strict` is set and not all of them fit.
    """
    translated, comparison = fit_weights(backbone, state, file=file, strict=strict)
    backbone.load_state_dict({name: translated[name] for name in comparison.fitting}, strict=False)
    return comparison


def fit_weights(
    backbone: nn.Module, state: Mapping[str, Tensor], *, file: Path, strict: bool
) -> tuple[dict[str, Tensor], WeightComparison]:
    """Convert weights to the names and shapes of a backbone, which may be on the meta device.

    The backbone may be part of a larger model in the file: the names are tried as they are and
    without each known prefix, and those with the most fitting tensors are used. Arguments and
    errors as in `load_weights`.

    Returns:
        The converted state dict, and its comparison with the backbone.
    """
    translate = getattr(backbone, "translate", dict)
    candidates = [translate(part) for part in _without_prefixes(state)]
    compared = [(part, compare_weights(part, backbone)) for part in candidates]
    translated, comparison = max(compared, key=lambda c: (len(c[1].fitting), -len(c[0])))
    if not comparison.fitting:
        raise ConfigError(
            f"no tensor in this file fits the backbone: {comparison}",
            where=file,
            remedy="use a file for this backbone, or the backbone of the file",
        )
    if strict and not comparison.is_complete:
        raise ConfigError(
            f"some tensors in this file do not fit the backbone: {comparison}",
            where=file,
            remedy="use the backbone and image size of the file, or load only the tensors that fit"
            " with backbone_weights.strict=false",
        )
    return translated, comparison


def _without_prefixes(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield the state dict, and the parts of it that have a known prefix, without the prefix."""
    yield state
    for prefix in _PREFIXES:
        if part := {n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)}:
            yield from _without_prefixes(part)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the state dict of a backbone without executing code from the file.

    Args:
        file: A state dict written by torch.save, also under a key such as "state_dict", "model" or
            "teacher"; a checkpoint; or a .safetensors file.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        ConfigError: The file does not exist or has another format.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            # DINO and MAE store their command-line arguments with the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _unreadable(file, "the file does not exist") from None
    except pickle.UnpicklingError:
        raise _unreadable(file, "it contains objects other than weights") from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, SafetensorError) as cause:
        reason = str(cause).partition("\n")[0]
        if "TorchScript" in reason:
            reason = (
                "it is a TorchScript archive, which contains code; if you trust it, convert it with"
                " torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)"
            )
        raise _unreadable(file, reason or "it is empty or has another format") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(n, str) and isinstance(w, Tensor) for n, w in content.items())
    ):
        raise _unreadable(file, "it contains no state dict")
    return dict(content)


def _unreadable(file: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot read the weights: {reason}",
        where=file,
        remedy="set backbone_weights.file to a state dict (torch.save or .safetensors) or to a"
        " checkpoint of arcloop",
    )


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"

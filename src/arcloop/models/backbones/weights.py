"""Weights of a backbone from a file, and a clear account of what in it fits and what does not."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from arcloop.errors import ConfigError

_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("embedder.backbone.", "module.")
_OPTIONAL = ".num_batches_tracked"
"""Old files have no such counts, and nothing that is trained here depends on them."""
_LISTED = 4


@dataclass(frozen=True)
class Comparison:
    """A state dict held against a module.

    Attributes:
        fitting: Names that are in both, of the same shape.
        missing: Names of the module alone.
        unexpected: Names of the state dict alone.
        misshapen: Name, shape in the state dict, shape in the module.
    """

    fitting: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    misshapen: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def whole(self) -> bool:
        """Whether everything of both fits."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        shapes = [
            f"{name} {_shape(found)}, not {_shape(own)}" for name, found, own in self.misshapen
        ]
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", shapes),
        )
        return "\n".join(
            [f"{len(self.fitting)} of {self._count} tensors fit"]
            + [f"    {kind} ({len(names)}): {_listing(names)}" for kind, names in kinds if names]
        )

    @property
    def _count(self) -> int:
        return len(self.fitting) + len(self.missing) + len(self.misshapen)


def compare(state: Mapping[str, Tensor], module: nn.Module) -> Comparison:
    """Hold a state dict against a module, by names and shapes.

    A parameter that has no shape yet, as a head that is to be split, takes any.
    """
    own = module.state_dict(keep_vars=True)
    shapes = {n: state[n].shape if is_lazy(w) else w.shape for n, w in own.items() if n in state}
    both = list(shapes)
    return Comparison(
        fitting=[n for n in both if state[n].shape == shapes[n]],
        missing=[n for n in own if n not in state and not n.endswith(_OPTIONAL)],
        unexpected=[n for n in state if n not in own],
        misshapen=[
            (n, tuple(state[n].shape), tuple(shapes[n]))
            for n in both
            if state[n].shape != shapes[n]
        ],
    )


def load_weights(
    backbone: nn.Module, state: Mapping[str, Tensor], *, file: Path, strict: bool
) -> Comparison:
    """Copy weights into a backbone, or refuse them and leave the backbone as it is.

    A backbone that has a method `translate` gets the state dict through it, so that files with
    other names, as they were published, can be taken.

    Args:
        backbone: What to load into.
        state: From `read_weights`.
        file: Where it is from, for the message.
        strict: Refuse it unless all of it fits; else take what fits.

    Returns:
        What fitted and what did not.

    Raises:
        ConfigError: Too little fits; says what does not.
    """
    translate = getattr(backbone, "translate", dict)
    translated: dict[str, Tensor] = translate(state)
    found = compare(translated, backbone)
    if not found.fitting:
        raise ConfigError(
            f"nothing in these weights is of this backbone: {found}",
            where=file,
            remedy="give the file of this backbone, or choose the backbone of the file",
        )
    if strict and not found.whole:
        raise ConfigError(
            f"these weights are not all of this backbone: {found}",
            where=file,
            remedy="choose the backbone and image size of the file, or take what fits with"
            " backbone_weights.strict=false",
        )
    backbone.load_state_dict({name: translated[name] for name in found.fitting}, strict=False)
    return found


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the state dict of a backbone; nothing in the file is executed.

    Args:
        file: What torch.save wrote of a state dict, also inside "state_dict" or "model"; a
            checkpoint of arcloop, of which the backbone's part is taken; or .safetensors.

    Raises:
        ConfigError: There is no such file, or it is none of these.
    """
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not _is_state(content):
        raise _unreadable(file, "it holds no state dict")
    for prefix in _PREFIXES:
        part = {n.removeprefix(prefix): w for n, w in content.items() if n.startswith(prefix)}
        content = part or content
    return dict(content)


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _unreadable(file, "there is no such file") from None
    except pickle.UnpicklingError:
        raise _unreadable(file, "it is no file of weights alone") from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError) as cause:
        reason = str(cause).partition("\n")[0]
        raise _unreadable(file, reason or "it is empty or of another format") from None


def _read_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except FileNotFoundError:
        raise _unreadable(file, "there is no such file") from None
    except (OSError, SafetensorError) as cause:
        raise _unreadable(file, str(cause)) from None


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(n, str) and isinstance(w, Tensor) for n, w in content.items())
    )


def _unreadable(file: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot read the weights: {reason}",
        where=file,
        remedy="backbone_weights.file takes a state dict (torch.save or .safetensors) or a"
        " checkpoint of arcloop",
    )


def _listing(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"

"""Constructors of the config, called with what is derived: from the images and from each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from arcloop.errors import ArcloopError, ConfigError
from arcloop.models import Embedder


def make_embedder(
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
    image_shape: tuple[int, int, int],
) -> Embedder:
    """Make an embedder for images (H, W, C), with weights as torch's generator draws them.

    Raises:
        ConfigError: A constructor refuses its values, or the images are too small.
    """
    made = make_backbone(backbone, image_shape)
    result: Embedder = call("embedder", embedder, made, image_shape=image_shape)
    return result


def make_backbone(
    backbone: Callable[..., nn.Module], image_shape: tuple[int, int, int]
) -> nn.Module:
    """Make a backbone from those of `in_channels` and `image_size` that it takes.

    Raises:
        ConfigError: Its constructor refuses its values.
    """
    height, width, channels = image_shape
    known = {"in_channels": channels, "image_size": (height, width)}
    taken = inspect.signature(backbone).parameters
    derived = {name: value for name, value in known.items() if name in taken}
    made: nn.Module = call("backbone", backbone, **derived)
    return made


def call(name: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor from the config; what it objects to is the config's fault.

    `kwargs` are derived, from the images and from other nodes.
    """
    if typed := sorted(kwargs.keys() & getattr(factory, "keywords", {}).keys()):
        raise ConfigError(
            f"{name}.{typed[0]} is not typed by hand: it follows from data and other groups",
            remedy=f"leave {name}.{typed[0]} out",
        )
    try:
        return factory(*args, **kwargs)
    except ArcloopError:
        raise
    except Exception as cause:  # whatever a library raises on a wrong value
        raise ConfigError(
            f"{name}: {str(cause) or type(cause).__name__}",
            where=f"config group {name}",
            remedy="change its values",
        ) from cause

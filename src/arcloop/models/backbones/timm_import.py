"""Import timm, with a stub in place of torchvision if that cannot be imported."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from arcloop.errors import ConfigError


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

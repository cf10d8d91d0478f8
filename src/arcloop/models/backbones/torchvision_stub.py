"""A stand-in for torchvision while timm is imported, for machines where torchvision is not.

timm imports torchvision for its transforms and datasets, which arcloop does not use: what timm's
models themselves need of it is one name, FrozenBatchNorm2d, to convert layers that arcloop never
makes. torchvision is a large compiled package that has to match torch's build exactly, and where it
does not, importing it fails. So where it can be imported it is used as it is; elsewhere every name
timm asks for is a placeholder, which exists and, when it is used, says what is missing. The
stand-in is gone from `sys.modules` as soon as timm is there: nobody else takes it for the real one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAME = "torchvision"


@contextlib.contextmanager
def torchvision_or_stand_in() -> Iterator[None]:
    """Within it, `import torchvision` gives the real package or, without one, a stand-in."""
    if _works():
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget()


def _works() -> bool:
    try:
        import_module(f"{_NAME}.ops.misc")
    except (ImportError, RuntimeError, OSError):  # missing; operators or libraries of another torch
        _forget()
        return False
    return True


def _forget() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == _NAME]:
        del sys.modules[name]


class _Placeholder(type):
    """A class that can be named, subclassed and asked for attributes, and nothing else."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__name__}.{name}")

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"{cls.__name__} needs torchvision, which cannot be imported here")


def _placeholder(name: str) -> _Placeholder:
    return _Placeholder(name, (), {})


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{self.__name__}.{name}")


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        own = fullname.partition(".")[0] == _NAME
        return ModuleSpec(fullname, self, is_package=True) if own else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""

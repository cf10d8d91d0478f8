"""Train, export, index, evaluate and serve ArcFace embedding models from one set of configs.

What this module exports is imported when it is first used, so `import arcloop` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arcloop import data, heads, metrics, samplers
    from arcloop.api import Answer, Match, Run, fit, load
    from arcloop.errors import ArcloopError
    from arcloop.pipeline.leaderboard.frame import load_sweep

__all__ = [
    "Answer", "ArcloopError", "Match", "Run", "__version__", "data", "fit", "heads", "load",
    "load_sweep", "metrics", "samplers",
]  # fmt: skip
__version__ = "0.2.0"

_HOMES = {
    **dict.fromkeys(("Answer", "Match", "Run", "fit", "load"), "arcloop.api"),
    "ArcloopError": "arcloop.errors",
    "load_sweep": "arcloop.pipeline.leaderboard.frame",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"arcloop.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

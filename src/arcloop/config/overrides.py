"""Overrides as texts: their keys, and values in Hydra's grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString


def key_of(override: str) -> str:
    """Return the key of an override.

    >>> key_of("++head.margin=0.3")
    'head.margin'
    """
    return override.partition("=")[0].lstrip("+~")


def format_value(value: Any) -> str:
    """Return a plain value in Hydra's grammar; texts are always quoted.

    >>> print(format_value({"a": [1, None, "x,y"], "b": True}))
    {a:[1,null,'x,y'],b:true}
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        items = (f"{name}:{format_value(child)}" for name, child in value.items())
        return "{" + ",".join(items) + "}"
    return repr(value)

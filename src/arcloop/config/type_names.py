"""Types and ranges in words, from JSON schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    "array": "list", "boolean": "true or false", "integer": "int", "null": "null",
    "number": "float", "object": "mapping", "string": "text",
}  # fmt: skip
"""Type of JSON schema -> word."""


def describe_type(schema: Mapping[str, Any]) -> str:
    """Return the type and range of values in words; "" if any value is allowed.

    >>> describe_type({"type": "number", "minimum": 0, "exclusiveMaximum": 1})
    'float in [0, 1)'
    >>> describe_type({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'int >= 1, or null'
    """
    if "anyOf" in schema:
        types = dict.fromkeys(describe_type(one) for one in schema["anyOf"])
        return "" if "" in types else ", or ".join(types)
    if "enum" in schema:
        words = [str(value).lower() if isinstance(value, bool) else str(value)
                 for value in schema["enum"]]  # fmt: skip
        return f"one of {', '.join(dict.fromkeys(words))}"
    if "const" in schema:
        return str(schema["const"])
    kind = _TYPES.get(str(schema.get("type", "")), "")
    if kind == "list" and (items := describe_type(schema.get("items", {}))):
        fewest, most = schema.get("minItems"), schema.get("maxItems")
        count = f"{fewest} " if fewest is not None and fewest == most else ""
        return f"list of {count}{items}"
    return f"{kind}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    least, most = (low if low is not None else above), (high if high is not None else below)
    if least is not None and most is not None:
        open_, close = "[" if low is not None else "(", "]" if high is not None else ")"
        return f" in {open_}{least:.6g}, {most:.6g}{close}"
    if least is not None:
        return f" {'>=' if low is not None else '>'} {least:.6g}"
    return f" {'<=' if high is not None else '<'} {most:.6g}" if most is not None else ""

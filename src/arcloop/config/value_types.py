"""Numbers with a range: annotations that settings and constructors share, checked in one place.

They import nothing heavy, so a value out of range is refused before torch is even loaded.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from arcloop.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """A closed interval; `low_open` and `high_open` leave an end out."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


PositiveInt = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(low=0, low_open=True, high_open=True)]
NonNegativeFloat = Annotated[float, Range(low=0, high_open=True)]
Fraction = Annotated[float, Range(low=0, high=1)]
"""A share or probability in [0, 1]."""
JpegQuality = Annotated[int, Range(low=1, high=100)]
"""As libjpeg counts it: 100 is the best, and still lossy."""
Angle = Annotated[float, Range(low=0, high=math.pi, high_open=True)]
"""An angle in radians in [0, pi)."""
CosineMargin = Annotated[float, Range(low=0, high=1)]
"""A margin in units of the cosine in [0, 1]."""
Similarity = Annotated[float, Range(low=-1, high=1)]
"""A cosine in [-1, 1]."""


def complaint(value: Any, annotation: Any) -> str | None:
    """Say why `value` does not fit `annotation`, as "must be ..."; None if it does.

    Understands int, float, bool, str, None, unions, Literal, list, tuple, dict, and Annotated with
    a `Range`. An int is a float; a bool is neither. Anything else is not judged.
    """
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        base, *notes = typing.get_args(annotation)
        fault = complaint(value, base)
        for note in notes:
            if fault is None and isinstance(note, Range) and value not in note:
                fault = f"must be in {note}"
        return fault
    if origin in (Union, types.UnionType):
        faults = [complaint(value, option) for option in typing.get_args(annotation)]
        return None if None in faults else " or ".join(dict.fromkeys(f for f in faults if f))
    if origin is Literal:
        options = typing.get_args(annotation)
        return None if value in options else "must be one of " + ", ".join(map(str, options))
    return _simple_complaint(value, annotation, origin)


def _simple_complaint(value: Any, annotation: Any, origin: Any) -> str | None:
    if annotation is type(None):
        return None if value is None else "must be null"
    if annotation is bool:
        return None if isinstance(value, bool) else "must be true or false"
    if annotation is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "must be an int"
    if annotation is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and not math.isnan(value) else "must be a number"
    if annotation is str:
        return None if isinstance(value, str) else "must be a string"
    if (origin or annotation) in (list, tuple):
        if not isinstance(value, list | tuple):
            return "must be a list"
        items = [a for a in typing.get_args(annotation) if a is not ...]
        if len(items) == 1:
            faults = (complaint(item, items[0]) for item in value)
            return next((f"every item {fault}" for fault in faults if fault), None)
        return None
    if (origin or annotation) is dict:
        return None if isinstance(value, dict) else "must be a mapping"
    return None


def check(where: str, **named: tuple[Any, Any]) -> None:
    """Raise one `ConfigError` for all values that do not fit: `check("head", margin=(0.3, Angle))`.

    Args:
        where: Prefix of the keys in the message, e.g. the config group.
        **named: Name -> (value, annotation).
    """
    faults = [
        f"{where}.{name}={value!r} {fault}"
        for name, (value, annotation) in named.items()
        if (fault := complaint(value, annotation))
    ]
    if faults:
        raise ConfigError("; ".join(faults), remedy="change the value")

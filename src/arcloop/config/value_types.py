"""Value types of the config, and the check of values against annotations.

Settings and constructors are annotated with these types. The annotations are used twice: the check
of a config reads them from the source without importing it (see `arcloop.config.targets`), and
`checked` and `check_fields` apply them when an object is constructed. pydantic validates in strict
mode: an int is accepted as a float, but "1" or true are not accepted as numbers.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from arcloop.errors import ConfigError

MISSING: Any = "???"
"""`omegaconf.MISSING`, the mark of a value that has no default, without an import of OmegaConf."""
_MAX_NAME_BYTES = 100  # file systems allow 255, and hashes and suffixes are added


def _check_folder_name(value: str) -> str:
    is_valid = re.fullmatch(r"(?!\.)[^/\\\x00-\x1f\x7f]+", value)
    if not is_valid or len(value.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES:
        raise ValueError(
            f"must be a folder name: 1 to {_MAX_NAME_BYTES} bytes, no '/', '\\' or control"
            " character, not beginning with '.'"
        )
    return value


FolderName = Annotated[str, AfterValidator(_check_folder_name)]
"""A name that is used as the name of a folder or file, or as a part of it."""
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share or probability in [0, 1]."""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
"""A share in (0, 1]."""
NearDuplicateBits = Annotated[int, Field(ge=0, le=16)]
"""Different bits of two hashes of 64 bits; the time of the search grows with the square of it."""
JpegQuality = Annotated[int, Field(ge=1, le=100)]
"""Quality setting of libjpeg; 100 is the best and still lossy."""
Angle = Annotated[float, Field(ge=0, lt=math.pi)]
"""An angle in radians in [0, π)."""
CosineMargin = Annotated[float, Field(ge=0, le=1)]
"""A margin in units of the cosine in [0, 1]."""
Similarity = Annotated[float, Field(ge=-1, le=1)]
"""A cosine similarity in [-1, 1]."""


def _check_threads(value: int | str) -> int | str:
    if value != "auto" and not (isinstance(value, int) and value >= 1):
        raise ValueError("must be auto or an integer greater than or equal to 1")
    return value


Threads = Annotated[int | str, AfterValidator(_check_threads)]
"""A number of threads, or "auto"."""


def _check_image_size(value: int | list[int]) -> int | list[int]:
    if isinstance(value, list) and len(value) != 2:
        raise ValueError("must be one number or [height, width]")
    return value


Colour = (
    Literal["black", "white", "mean"]
    | Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
)
"""A named colour, or [R, G, B]."""
ImageSize = Annotated[PositiveInt | list[PositiveInt], AfterValidator(_check_image_size)]
"""Height and width in pixels, or one number for both."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""


def _check_auto_count_or_share(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if value not in (None, "auto") and not (is_number and (isinstance(value, int) or value <= 1)):
        raise ValueError("must be auto, null, a number of 0 or more, or a share from 0.0 to 1.0")
    return value


AutoCountOrShare = Annotated[Any, AfterValidator(_check_auto_count_or_share)]
"""A number (int), a share (float) in [0, 1], "auto" or null; OmegaConf cannot merge a union."""


def _check_bounds(value: Any) -> Any:
    bounds = list(value.values()) if isinstance(value, Mapping) else [value]
    numbers = [b for b in bounds if isinstance(b, int | float) and not isinstance(b, bool)]
    if value is not None and not (numbers == bounds and all(0 <= b <= 1 for b in numbers)):
        raise ValueError("must be null, a number from 0 to 1, or such numbers by name: {a: 0.9}")
    return value


FractionOrFractions = Annotated[Any, AfterValidator(_check_bounds)]
"""A share in [0, 1], a mapping from names to shares, or null."""
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_MESSAGES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "float_type": "must be a number",
    "int_type": "must be an int",
    "list_type": "must be a list",
    "none_required": "must be null",
    "string_type": "must be a string",
    "tuple_type": "must be a list",
}
_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def one_of(*choices: str) -> AfterValidator:
    """Restrict a string annotation to the given values, ignoring case.

    OmegaConf has no Literal fields and turns the YAML value `true` into the string "True".
    """

    def validate(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return value

    return AfterValidator(validate)


def describe_mismatch(value: Any, annotation: Any) -> str | None:
    """Return why `value` does not fit `annotation`, as "must be ...", or None if it fits.

    A list and a tuple are equivalent, as in YAML. Annotations that pydantic cannot validate accept
    any value.

    >>> describe_mismatch(4, Angle)
    'must be less than 3.141592653589793'
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return None
    try:
        as_json = json.dumps(value)
    except (TypeError, ValueError):  # an object that a YAML file cannot contain
        as_json = None
    try:
        if as_json is None:
            adapter.validate_python(value)
        else:
            adapter.validate_json(as_json)
    except ValidationError as error:
        messages = (
            "".join(f"item {step} " for step in details["loc"] if isinstance(step, int))
            + _MESSAGES.get(details["type"], details["msg"])
            .replace("Input should be", "must be")
            .removeprefix("Value error, ")
            for details in error.errors(include_url=False)
        )
        return " or ".join(dict.fromkeys(messages))
    return None


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(annotation, config=_STRICT)
    except (PydanticUserError, SchemaError, TypeError):
        return None


def find_mismatches(values: Mapping[str, Any], hints: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield one message for each value that does not fit its annotation.

    Args:
        values: Name -> value. A mapping given for a dataclass is checked field by field.
        hints: Name -> annotation. Names without an annotation accept any value.
        key: Config key of the values, a prefix of the keys in the messages.
    """
    for name, value in values.items():
        hint, full_key = hints.get(name, Any), f"{key}.{name}" if key else name
        if is_dataclass(hint) and isinstance(value, Mapping):
            yield from find_mismatches(value, field_types(hint), full_key)
        elif message := describe_mismatch(value, hint):
            yield f"{full_key}={value!r} {message}"


def field_types(annotated: Any) -> dict[str, Any]:
    """Return the annotations of a function, or of a class, inherited ones included."""
    return typing.get_type_hints(annotated, include_extras=True)


def check_fields(settings: object, key: str) -> None:
    """Check all fields of a dataclass instance; call it in `__post_init__`.

    Args:
        settings: The instance.
        key: Config key of the instance, for the message.

    Raises:
        ConfigError: A value does not fit its annotation; the message lists every such value.
    """
    _raise_if_any(find_mismatches(vars(settings), field_types(type(settings)), key))


class CheckedSettings:
    """Base of dataclasses that check every field against its annotation on construction.

    Raises:
        ConfigError: A value does not fit its annotation; the message lists every such value.
    """

    def __post_init__(self) -> None:
        check_fields(self, type(self).__name__)


def checked(key: str) -> Callable[[_Callable], _Callable]:
    """Decorate a constructor or function so that it checks its arguments.

    Args:
        key: Config key of the object, e.g. "head", for the message.

    Returns:
        Decorator. The decorated function keeps its signature. It raises a `ConfigError` that lists
        every argument that does not fit its annotation.
    """

    def decorate(function: _Callable) -> _Callable:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked_function(*args: Any, **kwargs: Any) -> Any:
            values = {**dict(zip(names, args, strict=False)), **kwargs}
            _raise_if_any(find_mismatches(values, field_types(function), key))
            return function(*args, **kwargs)

        return cast("_Callable", checked_function)

    return decorate


def _raise_if_any(mismatches: Iterator[str]) -> None:
    if found := list(mismatches):
        raise ConfigError("\n".join(found), remedy="change the values")

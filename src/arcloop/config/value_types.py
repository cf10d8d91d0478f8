"""Value types of the config, and the check of values against annotations.

Settings and constructors are annotated with these types. The annotations are used twice: the check
of a config reads them from the source without importing it (see `arcloop.config.targets`), and
`checked` and `check_fields` apply them when an object is constructed. pydantic validates in strict
mode: an int is accepted as a float, but "1" or true are not accepted as numbers. The help of the
command line and the JSON schemas of conf/ are generated from the same annotations.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.errors import PydanticUserError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import SchemaError

from arcloop.config.restrictions import (
    MAX_NAME_BYTES,
    check_auto_count_or_share,
    check_bounds,
    check_folder_name,
    check_image_size,
    check_threads,
)
from arcloop.errors import ConfigError

MISSING: Any = "???"
"""`omegaconf.MISSING`, the mark of a value that has no default, without an import of OmegaConf."""
FolderName = Annotated[
    str,
    AfterValidator(check_folder_name),
    WithJsonSchema({"type": "string", "pattern": r"^(?!\.)[^/\\]+$", "maxLength": MAX_NAME_BYTES}),
]
"""A name that is used as the name of a folder or file, or as a part of it."""
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share or probability in [0, 1]."""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
"""A share in (0, 1]."""
NearDuplicateBits = Annotated[int, Field(ge=0, le=16, json_schema_extra={"unit": "bits"})]
"""Different bits of two hashes of 64 bits; the time of the search grows with the square of it."""
JpegQuality = Annotated[int, Field(ge=1, le=100)]
"""Quality setting of libjpeg; 100 is the best and still lossy."""
Angle = Annotated[float, Field(ge=0, lt=math.pi, json_schema_extra={"unit": "radians"})]
"""An angle in radians in [0, π)."""
CosineMargin = Annotated[float, Field(ge=0, le=1)]
"""A margin in units of the cosine in [0, 1]."""
Similarity = Annotated[float, Field(ge=-1, le=1)]
"""A cosine similarity in [-1, 1]."""
Threads = Annotated[
    int | str,
    AfterValidator(check_threads),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]
"""A number of threads, or "auto"."""
Colour = (
    Literal["black", "white", "mean"]
    | Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
)
"""A named colour, or [R, G, B]."""
ImageSize = Annotated[
    PositiveInt | list[PositiveInt],
    AfterValidator(check_image_size),
    Field(json_schema_extra={"unit": "pixels"}),
]
"""Height and width in pixels, or one number for both."""
Port = Annotated[int, Field(ge=1, le=65535)]
"""A TCP port."""
AutoCountOrShare = Annotated[
    Any,
    AfterValidator(check_auto_count_or_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {"type": "integer", "minimum": 0},
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "null"},
            ]
        }
    ),
]
"""A number (int), a share (float) in [0, 1], "auto" or null; OmegaConf cannot merge a union."""
_FRACTION_SCHEMA: JsonSchemaValue = {"type": "number", "minimum": 0, "maximum": 1}
FractionOrFractions = Annotated[
    Any,
    AfterValidator(check_bounds),
    WithJsonSchema(
        {
            "anyOf": [
                _FRACTION_SCHEMA,
                {"type": "object", "additionalProperties": _FRACTION_SCHEMA},
                {"type": "null"},
            ]
        }
    ),
]
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


def type_schema(annotation: Any) -> dict[str, Any]:
    """Return the JSON schema of the values of an annotation; empty if they cannot be checked.

    >>> type_schema(CosineMargin)
    {'maximum': 1, 'minimum': 0, 'type': 'number'}
    """
    adapter = _adapter(annotation)
    try:
        return {} if adapter is None else adapter.json_schema()
    except PydanticUserError:  # the type of an object, such as a function
        return {}


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

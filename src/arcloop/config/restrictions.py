"""Restrictions of values that pydantic has no name for; `value_types` uses them in annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import AfterValidator
from pydantic.json_schema import JsonSchemaValue

MAX_NAME_BYTES = 100  # file systems allow 255, and hashes and suffixes are added


def check_folder_name(value: str) -> str:
    """Require the name of a folder or file."""
    is_valid = re.fullmatch(r"(?!\.)[^/\\\x00-\x1f\x7f]+", value)
    if not is_valid or len(value.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        raise ValueError(
            f"must be a folder name: 1 to {MAX_NAME_BYTES} bytes, no '/', '\\' or control"
            " character, not beginning with '.'"
        )
    return value


def check_threads(value: int | str) -> int | str:
    """Require a number of threads, or "auto"."""
    if value != "auto" and not (isinstance(value, int) and value >= 1):
        raise ValueError("must be auto or an integer greater than or equal to 1")
    return value


def check_image_size(value: int | list[int]) -> int | list[int]:
    """Require one number, or height and width."""
    if isinstance(value, list) and len(value) != 2:
        raise ValueError("must be one number or [height, width]")
    return value


def check_auto_count_or_share(value: Any) -> Any:
    """Require a number, a share in [0, 1], "auto" or null."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    if value not in (None, "auto") and not (is_number and (isinstance(value, int) or value <= 1)):
        raise ValueError("must be auto, null, a number of 0 or more, or a share from 0.0 to 1.0")
    return value


def check_bounds(value: Any) -> Any:
    """Require a share in [0, 1], shares by name, or null."""
    bounds = list(value.values()) if isinstance(value, Mapping) else [value]
    numbers = [b for b in bounds if isinstance(b, int | float) and not isinstance(b, bool)]
    if value is not None and not (numbers == bounds and all(0 <= b <= 1 for b in numbers)):
        raise ValueError("must be null, a number from 0 to 1, or such numbers by name: {a: 0.9}")
    return value


@dataclass(frozen=True)
class Restriction(AfterValidator):
    """A validator of strings with its JSON schema.

    Attributes:
        schema: The values that the validator accepts.
    """

    schema: JsonSchemaValue = field(hash=False)

    def __get_pydantic_json_schema__(self, *_: object) -> JsonSchemaValue:
        return self.schema


def one_of(*choices: str) -> Restriction:
    """Restrict a string annotation to the given values, ignoring case.

    OmegaConf has no Literal fields and turns the YAML value `true` into the string "True".
    """

    def validate(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError("must be one of " + ", ".join(choices))
        return value

    booleans = [name == "true" for name in choices if name in ("true", "false")]
    return Restriction(validate, {"enum": [*choices, *booleans]})


def matching(pattern: str, description: str) -> Restriction:
    """Restrict a string annotation to a regular expression.

    Args:
        pattern: Expression for the whole string.
        description: End of the error message "must be ...".
    """

    def validate(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {description}")
        return value

    return Restriction(validate, {"type": "string", "pattern": f"^(?:{pattern})$"})

import functools
import inspect
import math
import os
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcloop.config.restrictions import one_of
from arcloop.config.value_types import (
    Angle,
    FolderName,
    Fraction,
    PositiveFloat,
    PositiveInt,
    check_fields,
    checked,
    describe_mismatch,
)
from arcloop.errors import ConfigError


class Unchecked(Protocol):
    """isinstance cannot check it."""

    def call(self): ...


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_angle_is_in_the_interval_from_0_to_pi(value):
    assert (describe_mismatch(value, Angle) is None) == (0 <= value < math.pi)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (1, PositiveInt, None),
        (0, PositiveInt, "must be greater than or equal to 1"),
        (True, PositiveInt, "must be an int"),
        (1.0, PositiveInt, "must be an int"),
        (1, Fraction, None),
        (1.01, Fraction, "must be less than or equal to 1"),
        (math.inf, PositiveFloat, "must be a finite number"),
        (math.nan, PositiveFloat, "must be a finite number"),
        ("1", float, "must be a number"),
        (1, bool, "must be true or false"),
        (None, Fraction | None, None),
        (2, Fraction | None, "must be less than or equal to 1"),
        ("b", Literal["a", "b"], None),
        ("c", Literal["a", "b"], "must be 'a' or 'b'"),
        ("True", Annotated[str, one_of("auto", "true")], None),
        ("no", Annotated[str, one_of("auto", "true")], "must be one of auto, true"),
        ([1, 2], list[PositiveInt], None),
        ((1, 2), list[PositiveInt], None),
        ([0.9, 0.99], tuple[float, float], None),
        ([1, -2], list[PositiveInt], "item 1 must be greater than or equal to 1"),
        (3, list[PositiveInt] | PositiveInt, None),
        ("x", list[Fraction] | int, "must be a list or must be an int"),
        (object(), object, None),
        (print, Unchecked, None),
    ],
)
def test_describe_mismatch(value, annotation, message):
    assert describe_mismatch(value, annotation) == message


class Head:
    @checked("head")
    def __init__(self, size: PositiveInt, *, margin: Angle, scale: PositiveFloat = 1.0) -> None:
        self.size, self.margin, self.scale = size, margin, scale


@given(st.text(max_size=60) | st.sampled_from([".", "..", "", "a/b", "é" * 51, "x" * 100]))
@example("x" * 115)  # with the suffix, one byte more than file systems allow
@example("a\0b")
def test_a_folder_name_is_one_part_of_a_path_with_room_for_a_suffix(tmp_path_factory, text):
    if describe_mismatch(text, FolderName) is not None:
        return
    root = tmp_path_factory.getbasetemp()
    folder = root / f"{text}-{'0' * 140}"
    assert folder.parent == root
    folder.mkdir(exist_ok=True)
    assert folder.name in os.listdir(root)
    folder.rmdir()


@pytest.mark.parametrize("text", ["", ".", "..", ".a", "a/b", "/a", "a\\b", "a\nb", "é" * 51])
def test_other_texts_are_no_folder_names(text):
    assert describe_mismatch(text, FolderName).startswith("must be a folder name")


def test_checked_names_every_argument_that_does_not_fit():
    with pytest.raises(ConfigError) as caught:
        Head(0, margin=9.0, scale=2)
    assert caught.value.what.splitlines() == [
        "head.size=0 must be greater than or equal to 1",
        "head.margin=9.0 must be less than 3.141592653589793",
    ]


def test_checked_keeps_the_signature_and_the_errors_of_python():
    assert list(inspect.signature(Head).parameters) == ["size", "margin", "scale"]
    assert functools.partial(Head, margin=0.5)(3).margin == 0.5
    with pytest.raises(TypeError, match="margn"):
        Head(3, margn=0.5)
    with pytest.raises(TypeError, match="margin"):
        Head(3)


@dataclass
class Settings:
    share: Fraction

    def __post_init__(self) -> None:
        check_fields(self, "settings")


def test_check_fields_checks_a_dataclass():
    assert Settings(1).share == 1
    with pytest.raises(ConfigError, match=r"settings\.share=-1 must be greater than"):
        Settings(-1)

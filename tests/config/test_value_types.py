import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.config.value_types import (
    Angle,
    Fraction,
    PositiveFloat,
    PositiveInt,
    check,
    complaint,
)
from arcloop.errors import ConfigError


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_angle_is_from_zero_up_to_pi_excluded(value):
    assert (complaint(value, Angle) is None) == (0 <= value < math.pi)


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, PositiveInt, True),
        (0, PositiveInt, False),
        (True, PositiveInt, False),
        (1.0, PositiveInt, False),
        (1, Fraction, True),
        (1.01, Fraction, False),
        (math.inf, PositiveFloat, False),
        ("1", float, False),
        (None, Fraction | None, True),
        (2, Fraction | None, False),
        ("b", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], list[PositiveInt], True),
        ([1, -2], list[PositiveInt], False),
        (3, list[PositiveInt] | PositiveInt, True),
        (object(), object, True),
    ],
)
def test_complaint(value, annotation, fits):
    assert (complaint(value, annotation) is None) == fits


def test_check_names_every_fault():
    with pytest.raises(ConfigError, match=r"head\.margin=9 .*\[0, 3\.14159\).*; head\.scale=-1 "):
        check("head", margin=(9, Angle), scale=(-1, PositiveFloat), ok=(1, PositiveInt))

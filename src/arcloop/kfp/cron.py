"""`0 0 * * 2`, as everyone writes a schedule -> the six fields that KFP takes."""

from __future__ import annotations

import re

from arcloop.errors import ConfigError

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def six_fields(schedule: str) -> str:
    """Check a schedule and write it as KFP reads it: seconds first, weekdays by name.

    Weekdays are named because 2 is Tuesday to cron and Monday to others.

    >>> six_fields("0 0 * * 2")
    '0 0 0 * * TUE'
    >>> six_fields("*/15 6-18 * * MON-FRI")
    '0 */15 6-18 * * MON-FRI'

    Raises:
        ConfigError: It is no schedule.
    """
    fields = schedule.split()
    if len(fields) != len(_FIELDS):
        raise _wrong(schedule, "it needs five fields: minute hour day month weekday")
    written = [
        ",".join(_part(part, name, low, high, schedule) for part in field.split(","))
        for field, (name, low, high) in zip(fields, _FIELDS, strict=True)
    ]
    return " ".join(["0", *written])


def _part(part: str, name: str, low: int, high: int, schedule: str) -> str:
    found = re.fullmatch(r"(\*|\w+(?:-\w+)?)(?:/(\d+))?", part)
    if not found or found[2] == "0":
        raise _wrong(schedule, f"{part!r} is no {name}")
    if found[1] == "*":
        return part
    ends = [_number(end, name, schedule) for end in found[1].split("-")]
    if any(not low <= end <= high for end in ends) or ends != sorted(ends):
        raise _wrong(schedule, f"{name} {found[1]} is not within {low} to {high}")
    shown = [_WEEKDAYS[end] for end in ends] if name == "weekday" else [str(end) for end in ends]
    return "-".join(shown) + (f"/{found[2]}" if found[2] else "")


def _number(text: str, name: str, schedule: str) -> int:
    names = {"weekday": _WEEKDAYS, "month": ("", *_MONTHS)}.get(name, ())
    if text.upper() in names and text:
        return names.index(text.upper())
    if not text.isdigit():
        raise _wrong(schedule, f"{text!r} is no {name}")
    return int(text)


def _wrong(schedule: str, why: str) -> ConfigError:
    return ConfigError(
        f"schedule={schedule!r} cannot be read: {why}",
        remedy="write it as cron does, e.g. schedule='0 0 * * 2' for Tuesday at midnight, UTC",
    )

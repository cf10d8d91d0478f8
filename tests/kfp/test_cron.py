import pytest

from arcloop.errors import ConfigError
from arcloop.kfp.cron import six_fields


@pytest.mark.parametrize(
    ("schedule", "written"),
    [
        ("0 0 * * 2", "0 0 0 * * TUE"),
        ("*/15 6-18 * * MON-FRI", "0 */15 6-18 * * MON-FRI"),
        ("30 4 1,15 JAN *", "0 30 4 1,15 1 *"),
        ("0 0 * * 0", "0 0 0 * * SUN"),
        ("0 0 * * 7", "0 0 0 * * SUN"),
        ("5 0-23/2 * * 1,3", "0 5 0-23/2 * * MON,WED"),
    ],
)
def test_schedules(schedule, written):
    assert six_fields(schedule) == written


@pytest.mark.parametrize(
    "schedule",
    ["", "0 0 * *", "0 0 0 * * 2", "60 0 * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *",
     "0 0 * * 8", "0 0 * * TUESDAY", "5-1 * * * *", "*/0 * * * *", "a b c d e", "1-2-3 * * * *"],
)  # fmt: skip
def test_what_is_no_schedule(schedule):
    with pytest.raises(ConfigError, match="cannot be read"):
        six_fields(schedule)

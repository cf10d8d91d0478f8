"""Cron schedules and the six fields of KFP."""

import pytest

from arcloop.errors import ConfigError
from arcloop.kfp.server.schedules import kfp_schedule

EVERY_DAY = "SUN,MON,TUE,WED,THU,FRI,SAT"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("0 0 * * 2", "0 0 0 * * TUE"),
        ("*/15 6-18 * * MON-FRI", "0 */15 6-18 * * MON,TUE,WED,THU,FRI"),
        ("30 4 1,15 jan *", "0 30 4 1,15 JAN *"),
        ("0 0 * JUL *", "0 0 0 * JUL *"),
        ("0 0 * * */2", "0 0 0 * * */2"),
        ("5 0-23/2 * * 1,3", "0 5 0-23/2 * * MON,WED"),
    ],
)
def test_a_schedule_has_six_fields_and_named_weekdays(schedule, expected):
    assert kfp_schedule(schedule) == expected


@pytest.mark.parametrize(
    ("weekdays", "expected"),
    [
        ("0", "SUN"),
        ("7", "SUN"),
        ("0-7", EVERY_DAY),
        ("1-7", EVERY_DAY),
        ("5-7", "SUN,FRI,SAT"),
        ("SAT-SUN", "SUN,SAT"),
        ("SUN-TUE", "SUN,MON,TUE"),
        ("1-5/2", "MON,WED,FRI"),
    ],
)
def test_sunday_is_0_and_7(weekdays, expected):
    assert kfp_schedule(f"0 0 * * {weekdays}") == f"0 0 0 * * {expected}"


@pytest.mark.parametrize(
    "schedule",
    ["", "0 0 * *", "0 0 0 * * 2", "60 0 * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *",
     "0 0 * * 8", "0 0 * * TUESDAY", "5-1 * * * *", "*/0 * * * *", "a b c d e", "1-2-3 * * * *",
     "0 0 L * *", "0 0 * * 5L", "0 0 * * 5#2"],
)  # fmt: skip
def test_other_texts_are_rejected(schedule):
    with pytest.raises(ConfigError, match="is not a cron schedule"):
        kfp_schedule(schedule)


def test_a_schedule_can_state_the_time_zone_of_the_server():
    assert kfp_schedule("CRON_TZ=UTC 0 0 * * 2") == "0 0 0 * * TUE"
    assert kfp_schedule("TZ=Europe/Berlin 0 0 * * 2", "Europe/Berlin") == "0 0 0 * * TUE"


def test_a_schedule_of_another_time_zone_is_refused():
    """The server has one time zone for all schedules.

    backend/src/crd/controller/scheduledworkflow/util/const.go, GetLocation, reads it from the
    variable CRON_SCHEDULE_TIMEZONE. cron_schedule.go, getNextScheduledTimeImp, parses the schedule
    with robfig/cron v1.2.0, whose parser.go, Parse, expects 5 or 6 fields and no CRON_TZ.
    """
    with pytest.raises(ConfigError, match="one time zone for all schedules, which is UTC") as error:
        kfp_schedule("CRON_TZ=Europe/Berlin 0 0 * * 2")
    assert "CRON_SCHEDULE_TIMEZONE" in str(error.value)

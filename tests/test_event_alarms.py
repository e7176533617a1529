"""Alarms of ingestion: far fewer events than usual, or more rows rejected for one reason than usual."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import pytest

from pipelines.steps.events.event_alarms import DayCounts, days_before, unusual_number, unusual_rejections

DAY = date(2025, 3, 31)


def weeks_of(*numbers: int) -> dict[date, int]:
    """Accepted events of the day, and of the same weekday one, two, … weeks before."""
    return {DAY - timedelta(weeks=back): number for back, number in enumerate(numbers)}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0], "no events yet for 2025-03-31"),
        ([0, 0, 0], "no events yet for 2025-03-31"),
        ([0, 100, 0, 0, 0], "no events yet for 2025-03-31"),
        ([0, 0, 0, 0], None),  # never on this weekday
        ([1], None),
        ([50, 100, 100, 100, 100], None),
        ([49, 100, 100, 100, 100], "49 events on 2025-03-31, where 100 are usual on a Monday"),
        # One odd week does not say what is usual; and what was six weeks ago does not count.
        ([90, 100, 5_000, 100], None),
        ([90, 100, 100, 100, 100, 900, 900], None),
    ],
)
def test_far_fewer_events_than_on_the_same_weekday_are_unusual(
    numbers: Sequence[int], message: str | None
) -> None:
    assert unusual_number(DAY, weeks_of(*numbers)) == message


def test_other_weekdays_say_nothing() -> None:
    accepted = {DAY: 10} | {DAY - timedelta(days=back): 1_000 for back in range(1, 7)}
    assert unusual_number(DAY, accepted) is None


def days_of(today: DayCounts, *before: DayCounts) -> dict[date, DayCounts]:
    return {DAY - timedelta(days=back): counts for back, counts in enumerate([today, *before])}


USUAL = DayCounts(1_000, {"zero_id": 10, "filter:emulator": 100})


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ({"zero_id": 12, "filter:emulator": 110}, None),
        ({"zero_id": 60}, "zero_id: 6.0% of the rows of 2025-03-31, usually 1.0%"),
        ({"filter:emulator": 180}, None),
        ({"filter:emulator": 210}, "filter:emulator: 21.0% of the rows of 2025-03-31, usually 10.0%"),
        (
            {"late_event": 40, "missing_id": 50},
            "late_event: 4.0% of the rows of 2025-03-31, usually 0.0% (are time_column and arrival_column in "
            "different time zones, or max_late_hours too few?); "
            "missing_id: 5.0% of the rows of 2025-03-31, usually 0.0%",
        ),
        ({}, None),
    ],
)
def test_a_share_well_above_that_of_the_days_before_is_unusual(
    rejected: Mapping[str, int], message: str | None
) -> None:
    assert unusual_rejections(DAY, days_of(DayCounts(1_000, rejected), USUAL, USUAL, USUAL)) == message


def test_a_share_that_one_of_the_days_before_had_is_not_unusual() -> None:
    restless = [DayCounts(1_000, {"missing_id": rows}) for rows in (100, 100, 400, 100)]
    assert unusual_rejections(DAY, days_of(DayCounts(1_000, {"missing_id": 390}), *restless)) is None
    assert unusual_rejections(DAY, days_of(DayCounts(1_000, {"missing_id": 410}), *restless)) is not None


def test_a_few_rows_of_a_small_day_are_chance() -> None:
    assert unusual_rejections(DAY, days_of(DayCounts(8, {"zero_id": 2}), DayCounts(8), DayCounts(8))) is None


@pytest.mark.parametrize(
    "reason",
    ["misfiled_event", "missing_time", "missing_arrival", "future_event", "late_event", "mistyped:price"],
)
def test_misreading_is_an_alarm_on_the_first_day(reason: str) -> None:
    message = unusual_rejections(DAY, days_of(DayCounts(100, {reason: 34})))
    assert message is not None
    assert message.startswith(f"{reason}: 34.0% of the rows of 2025-03-31 (")
    assert unusual_rejections(DAY, days_of(DayCounts(100, {reason: 10}))) is None


def test_misfiled_rows_ask_for_the_time_zone() -> None:
    message = unusual_rejections(DAY, days_of(DayCounts(100, {"misfiled_event": 34})))
    assert message is not None
    assert "are the folders named by the days of another time zone?" in message


def test_misreading_that_has_become_usual_is_still_an_alarm() -> None:
    always = DayCounts(100, {"misfiled_event": 34})
    assert "usually 34.0%" in str(unusual_rejections(DAY, days_of(always, always, always)))


def test_dirt_is_no_alarm_on_the_first_day() -> None:
    assert unusual_rejections(DAY, days_of(DayCounts(100, {"missing_id": 60}))) is None


def test_a_day_without_rows_has_no_shares() -> None:
    assert unusual_rejections(DAY, {}) is None
    assert unusual_rejections(DAY, days_of(DayCounts(100, {"zero_id": 1}), DayCounts(0))) is None


def test_days_are_compared_with_those_that_are_known() -> None:
    known = {DAY - timedelta(days=back) for back in (0, 1, 3, 14, 15, 30)}
    days = days_before([DAY], known)
    assert days == [DAY - timedelta(days=back) for back in (14, 3, 1, 0)]

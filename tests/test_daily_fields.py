"""Device-days: each field's distinct raw values, and how many events there were."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

import pytest

from pipelines.steps.config.fields import FieldSpec
from pipelines.steps.features.daily_fields import aggregate_days
from tests.conftest import Frame

DAY = date(2025, 3, 10)
NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

MODEL = FieldSpec(name="model", column="device_model", kind="single", normalizer="text")
APPS = FieldSpec(name="apps", column="app_package", kind="multi", normalizer="package")
EVENTS = (
    "device_id string, day date, event_time timestamp, device_model string, app_package string, price int"
)


# Name → what a device reports on one day, and what is kept of it.
SINGLE_CASES: Mapping[str, tuple[Sequence[tuple[datetime, str | None]], list[str]]] = {
    "two values": ([(NOON, "old"), (NOON + MINUTE, "new")], ["new", "old"]),
    "rows out of order": ([(NOON + MINUTE, "new"), (NOON, "old")], ["new", "old"]),
    "seen again": ([(NOON, "a"), (NOON + MINUTE, "b"), (NOON + 2 * MINUTE, "a")], ["a", "b"]),
    "same instant: last in lexical order": ([(NOON, "a"), (NOON, "b")], ["b", "a"]),
    "same instant, rows out of order": ([(NOON, "b"), (NOON, "a")], ["b", "a"]),
    "newest is null": ([(NOON, "a"), (NOON + MINUTE, None)], ["a"]),
    "nothing but null": ([(NOON, None)], []),
}


@pytest.fixture(scope="module")
def kept(frame: Frame) -> dict[str, list[str]]:
    """All cases in one Spark job, a device each."""
    events = [
        (case, DAY, at, model, None, None) for case, (seen, _) in SINGLE_CASES.items() for at, model in seen
    ]
    rows = aggregate_days(frame(EVENTS, events), [MODEL]).toArrow().to_pylist()
    return {row["device_id"]: row["model"] for row in rows}


@pytest.mark.parametrize("case", SINGLE_CASES)
def test_a_single_valued_field_has_its_newest_value_first(case: str, kept: dict[str, list[str]]) -> None:
    assert kept[case] == SINGLE_CASES[case][1]


def test_a_multi_valued_field_has_its_distinct_values_in_lexical_order(frame: Frame) -> None:
    apps = ["b", "a", None, "b", "B"]
    events = frame(EVENTS, [("phone", DAY, NOON, None, app, None) for app in apps])
    [row] = aggregate_days(events, [APPS]).toArrow().to_pylist()
    assert row["apps"] == ["B", "a", "b"]


def test_a_device_without_any_value_keeps_its_row(frame: Frame) -> None:
    events = frame(EVENTS, [("phone", DAY, NOON, None, None, None)])
    [row] = aggregate_days(events, [MODEL, APPS]).toArrow().to_pylist()
    assert row == {
        "device_id": "phone", "day": DAY, "events": 1, "last_event_time": NOON, "model": [], "apps": [],
    }  # fmt: skip


def test_values_are_kept_as_text(frame: Frame) -> None:
    prices = FieldSpec(name="prices", column="price", kind="multi", normalizer="log_bucket")
    events = frame(EVENTS, [("phone", DAY, NOON, None, None, price) for price in (10, 9)])
    [row] = aggregate_days(events, [prices]).toArrow().to_pylist()
    assert row["prices"] == ["10", "9"]


def test_each_device_and_day_has_a_row_of_its_own(frame: Frame) -> None:
    next_day, next_noon = DAY + timedelta(days=1), NOON + timedelta(days=1)
    events = frame(
        EVENTS,
        [
            ("phone", DAY, NOON, "a", None, None),
            ("phone", DAY, NOON + MINUTE, "a", None, None),
            ("phone", next_day, next_noon, "b", None, None),
            ("tablet", DAY, NOON, "c", None, None),
        ],
    )
    rows = aggregate_days(events, [MODEL]).orderBy("device_id", "day").toArrow().to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("phone", DAY, 2, NOON + MINUTE, ["a"]),
        ("phone", next_day, 1, next_noon, ["b"]),
        ("tablet", DAY, 1, NOON, ["c"]),
    ]

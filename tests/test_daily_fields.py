"""Device-days: how many events, when, each field's raw values with their events, each measure's amounts."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import inf, nan
from random import Random
from typing import Any

import pytest

from pipelines.steps.config.fields import FieldSpec, MeasureSpec
from pipelines.steps.errors import ConfigError
from pipelines.steps.features.daily_fields import aggregate_days, event_columns
from tests.conftest import Frame

DAY = date(2025, 3, 10)
NOON = datetime(2025, 3, 10, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

MODEL = FieldSpec(name="model", column="device_model", kind="single", normalizer="text")
APPS = FieldSpec(name="apps", column="app_package", kind="multi", normalizer="package")
EVENTS = (
    "device_id string, day date, event_time timestamp, device_model string, app_package string, price int"
)


def counted(**values: int) -> list[dict[str, object]]:
    """A field's values, each with its number of events."""
    return [{"value": value, "events": events} for value, events in values.items()]


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
    return {row["device_id"]: [seen["value"] for seen in row["model"]] for row in rows}


@pytest.mark.parametrize("case", SINGLE_CASES)
def test_a_single_valued_field_has_its_newest_value_first(case: str, kept: dict[str, list[str]]) -> None:
    assert kept[case] == SINGLE_CASES[case][1]


def test_a_multi_valued_field_has_its_distinct_values_and_their_events_in_lexical_order(frame: Frame) -> None:
    apps = ["b", "a", None, "b", "B"]
    events = frame(EVENTS, [("phone", DAY, NOON, None, app, None) for app in apps])
    [row] = aggregate_days(events, [APPS]).toArrow().to_pylist()
    assert row["apps"] == counted(B=1, a=1, b=2)


def test_a_device_without_any_value_keeps_its_row(frame: Frame) -> None:
    events = frame(EVENTS, [("phone", DAY, NOON, None, None, None)])
    [row] = aggregate_days(events, [MODEL, APPS]).toArrow().to_pylist()
    assert row == {
        "device_id": "phone", "day": DAY, "events": 1, "first_event_time": NOON, "last_event_time": NOON,
        "hours": 1 << 12, "model": [], "apps": [],
    }  # fmt: skip


def test_values_are_kept_as_text(frame: Frame) -> None:
    prices = FieldSpec(name="prices", column="price", kind="multi", normalizer="log_bucket")
    events = frame(EVENTS, [("phone", DAY, NOON, None, None, price) for price in (10, 9)])
    [row] = aggregate_days(events, [prices]).toArrow().to_pylist()
    assert row["prices"] == [{"value": "10", "events": 1}, {"value": "9", "events": 1}]


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
        ("phone", DAY, 2, NOON, NOON + MINUTE, 1 << 12, counted(a=2)),
        ("phone", next_day, 1, next_noon, next_noon, 1 << 12, counted(b=1)),
        ("tablet", DAY, 1, NOON, NOON, 1 << 12, counted(c=1)),
    ]


# --- hours ----------------------------------------------------------------------------------------


def test_the_hours_of_a_day_are_the_utc_hours_with_an_event(frame: Frame) -> None:
    midnight = datetime(2025, 3, 10, tzinfo=UTC)
    last = midnight + timedelta(days=1) - timedelta(microseconds=1)
    after = last + timedelta(microseconds=2)
    seen = [(DAY, midnight), (DAY, midnight + MINUTE), (DAY, last), (DAY + timedelta(days=1), after)]
    events = frame(EVENTS, [("phone", day, at, None, None, None) for day, at in seen])
    rows = aggregate_days(events, [APPS]).orderBy("day").toArrow().to_pylist()
    assert [(row["hours"], row["first_event_time"], row["last_event_time"]) for row in rows] == [
        (1 | 1 << 23, midnight, last),
        (1, after, after),
    ]


# --- measures -------------------------------------------------------------------------------------

AMOUNTS = "device_id string, day date, event_time timestamp, app string, paid double, pieces int"
PAID = MeasureSpec(name="revenue", column="paid")


def amounts_of(frame: Frame, cases: Mapping[str, Sequence[float | None]]) -> dict[str, dict[str, Any]]:
    rows = [(case, DAY, NOON, None, paid, None) for case, values in cases.items() for paid in values]
    days = aggregate_days(frame(AMOUNTS, rows), [FieldSpec.model_validate(APP)], [PAID])
    return {row["device_id"]: row["revenue"] for row in days.toArrow().to_pylist()}


APP = {"name": "apps", "column": "app", "kind": "multi", "normalizer": "text"}
AMOUNT_CASES: Mapping[str, tuple[Sequence[float | None], tuple[str, str | None, int, int, int]]] = {
    # values → sum, max, events, nonzero, uncounted
    "one": ([2.5], ("2.5", "2.5", 1, 1, 0)),
    "a return": ([2.5, -4.0], ("-1.5", "2.5", 2, 2, 0)),
    "returns alone": ([-1.0, -4.0], ("-5", "-1", 2, 2, 0)),
    "zeros": ([0.0, -0.0, 3.0], ("3", "3", 3, 1, 0)),
    "nulls are no amounts": ([None, 2.0, None], ("2", "2", 1, 1, 0)),
    "nothing but null": ([None], ("0", None, 0, 0, 0)),
    "what is no number": ([nan, inf, -inf, 2.0], ("2", "2", 1, 1, 3)),
    "nothing but NaN": ([nan], ("0", None, 0, 0, 1)),
    "beyond 20 digits": ([1e20, -1e20, 9e19], ("90000000000000000000", "90000000000000000000", 1, 1, 2)),
    "tenths are exact": ([0.1] * 10, ("1", "0.1", 10, 10, 0)),
    "six places": ([0.0000014, 0.0000004], ("0.000001", "0.000001", 2, 1, 0)),
}


@pytest.fixture(scope="module")
def amounts(frame: Frame) -> dict[str, dict[str, Any]]:
    return amounts_of(frame, {case: values for case, (values, _) in AMOUNT_CASES.items()})


@pytest.mark.parametrize("case", AMOUNT_CASES)
def test_a_measure_is_summed_up_exactly(case: str, amounts: dict[str, dict[str, Any]]) -> None:
    total, largest, *counts = AMOUNT_CASES[case][1]
    expected = (Decimal(str(total)), None if largest is None else Decimal(str(largest)), *counts)
    assert tuple(amounts[case].values()) == expected
    assert list(amounts[case]) == ["sum", "max", "events", "nonzero", "uncounted"]


def test_a_sum_does_not_depend_on_the_order_of_events(frame: Frame) -> None:
    values = [0.1, 1e15, -1e15, 0.2, 1e-6, -0.3]
    shuffled = {f"order {seed}": Random(seed).sample(values, len(values)) for seed in range(5)}
    found = amounts_of(frame, shuffled)
    assert {str(amounts["sum"]) for amounts in found.values()} == {"0.000001"}


def test_a_measure_may_be_an_expression_over_columns_of_any_number(frame: Frame) -> None:
    ddl = f"{AMOUNTS}, cents float, rate decimal(38,10), `raw:day` bigint"
    events = frame(ddl, [("phone", DAY, NOON, None, 2.5, 3, 0.1, Decimal("0.1234567"), 15)] * 2)
    measures = [
        MeasureSpec(name="revenue", sql="paid * pieces"),
        MeasureSpec(name="small", column="cents"),
        MeasureSpec(name="rate", column="rate"),
        MeasureSpec(name="of_month", column="day"),
    ]
    assert event_columns([], measures) == [
        "device_id", "day", "event_time", "paid", "pieces", "cents", "rate", "raw:day"
    ]  # fmt: skip
    [row] = aggregate_days(events, [FieldSpec.model_validate(APP)], measures).toArrow().to_pylist()
    sums = {measure.name: str(row[measure.name]["sum"].normalize()) for measure in measures}
    assert sums == {"revenue": "15", "small": "0.2", "rate": "0.246914", "of_month": "3E+1"}


@pytest.mark.parametrize(
    ("measure", "what", "found"),
    [
        (
            {"column": "app"},
            "fields.yaml: `measures.m.column` names a column that holds no numbers",
            "'app' of type string",
        ),
        (
            {"sql": "paid > 0"},
            "fields.yaml: `measures.m.sql` makes no numbers",
            "'paid > 0' of type boolean",
        ),
        (
            {"sql": "paid * array(pieces)"},
            "fields.yaml: `measures.m.sql` does not fit the columns of the events",
            "'paid * array(pieces)': [DATATYPE_MISMATCH",
        ),
    ],
)
def test_a_measure_that_is_no_number_is_refused_before_any_row_is_read(
    frame: Frame, measure: dict[str, Any], what: str, found: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        aggregate_days(frame(AMOUNTS, []), [], [MeasureSpec(name="m", **measure)])
    assert caught.value.what == what
    assert str(caught.value.found).startswith(found)
    assert "try_cast(" in caught.value.remedy


def test_days_at_once_equal_each_day_alone_whatever_the_order_of_events(frame: Frame) -> None:
    rng, rows = Random(3), []
    for number in range(200):
        ahead = rng.randrange(4)
        at = datetime(2025, 3, 10, rng.randrange(24), number % 60, tzinfo=UTC) + timedelta(days=ahead)
        app, paid = rng.choice(["a", "b", "c", None]), rng.choice([0.1, -0.7, 1e9, nan, None])
        rows.append((f"phone {rng.randrange(5)}", DAY + timedelta(days=ahead), at, app, paid, number))
    fields = [FieldSpec.model_validate(APP | {"name": kind, "kind": kind}) for kind in ("single", "multi")]

    def days(chosen: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        return list(aggregate_days(frame(AMOUNTS, chosen), fields, [PAID]).toArrow().to_pylist())

    alone = [
        row for ahead in range(4) for row in days([r for r in rows if r[1] == DAY + timedelta(days=ahead)])
    ]
    at_once = days(rng.sample(rows, len(rows)))
    order = lambda row: (row["day"], row["device_id"])  # noqa: E731
    assert sorted(at_once, key=order) == sorted(alone, key=order)
    assert sum(row["events"] for row in alone) == 200

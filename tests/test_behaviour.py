"""Behaviour: every number against raw events; no day and no device sees another, nor what comes later."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.steps.errors import DataError
from pipelines.steps.features.behaviour import device_behaviour, signal_behaviour
from pipelines.steps.features.behaviours import Layout, device_behaviours, signal_behaviours

LAYOUT = Layout(30, ("apps",), {"revenue": True})
DAY = date(2025, 3, 31)
MICROSECOND = timedelta(microseconds=1)
KEYS = {"device_id": pa.string(), "day": pa.date32()}
TIMES = {"events": pa.int64(), "last_event_time": pa.timestamp("us", "UTC")}
MONEY = pa.decimal128(38, 6)
VALUES = pa.list_(pa.struct({"value": pa.string(), "events": pa.int64()}))
REVENUE = pa.struct({"sum": MONEY, "max": MONEY, "events": pa.int64(), "nonzero": pa.int64()})
DAILY = pa.schema(KEYS | TIMES | {"hours": pa.int32(), "apps": VALUES, "revenue": REVENUE})
SIGNAL = pa.schema(KEYS | TIMES)


@dataclass(frozen=True)
class Event:
    """A raw event of a device; `bought` is the signal."""

    device: str
    time: datetime
    app: str | None = None
    revenue: Decimal | None = None
    bought: bool = False


def aggregated(events: Sequence[Event]) -> tuple[pa.Table, pa.Table]:
    """`daily_fields` and `daily_signals` of events."""
    rows: dict[tuple[str, date], list[Event]] = {}
    for event in events:
        rows.setdefault((event.device, event.time.date()), []).append(event)
    daily, signal = [], []
    for (device, day), found in rows.items():
        amounts = [e.revenue for e in found if e.revenue is not None]
        apps = [e.app for e in found if e.app is not None]
        key = {"device_id": device, "day": day}
        daily.append(
            key
            | {
                "events": len(found),
                "last_event_time": max(e.time for e in found),
                "hours": sum(1 << hour for hour in {e.time.hour for e in found}),
                "apps": [{"value": app, "events": apps.count(app)} for app in dict.fromkeys(apps)],
                "revenue": {
                    "sum": sum(amounts, Decimal(0)),
                    "max": max(amounts, default=None),
                    "events": len(amounts),
                    "nonzero": sum(amount != 0 for amount in amounts),
                },
            }
        )
        if bought := [e.time for e in found if e.bought]:
            signal.append(key | {"events": len(bought), "last_event_time": max(bought)})
    return pa.Table.from_pylist(daily, DAILY), pa.Table.from_pylist(signal, SIGNAL)


def computed(events: Sequence[Event], as_of_days: Sequence[date]) -> tuple[pa.Table, pa.Table]:
    daily, signal = aggregated(events)
    behaviour = device_behaviour(daily, LAYOUT, as_of_days)
    return behaviour, signal_behaviour(signal, behaviour, LAYOUT)


def of_device(events: Sequence[Event], as_of: date = DAY) -> dict[str, Any]:
    """Behaviour of the only device, its signal's with the prefix `bought_`."""
    behaviour, bought = computed(events, [as_of])
    row: dict[str, Any]
    past: dict[str, Any]
    [row], [past] = behaviour.to_pylist(), bought.to_pylist()
    return row | {f"bought_{name}": value for name, value in past.items()}


def midnight(day: date) -> datetime:
    """UTC without a zone, as files hold it."""
    return datetime.combine(day, time.min, UTC).replace(tzinfo=None)


def at(days_back: int, hour: int = 12) -> datetime:
    return midnight(DAY) + timedelta(hours=hour) - timedelta(days=days_back)


# --- the reference, from raw events ---------------------------------------------------------------


def rhythm(days: pd.Series, events: pd.DataFrame, end: pd.Timestamp) -> dict[str, float]:
    active = np.sort(days.unique())
    gaps = np.diff(active).astype("timedelta64[D]").astype(float)
    since = (end - pd.Timedelta(days=1) - active.max()).days if len(active) else np.nan
    age = (end - events["time"].dt.floor("D")).dt.days - 1
    last, before = (age < 7).sum(), ((age >= 7) & (age < 30)).sum()
    days_before = min((end - days.min()).days, 30) - 7
    some = len(gaps) > 0
    return {
        "gap_mean": gaps.mean() if some else np.nan,
        "gap_spread": gaps.std() if some else np.nan,
        "overdue": since / gaps.mean() if some else np.nan,
        "trend": (last + 1) / (before / (days_before / 7) + 1) if days_before > 0 else np.nan,
    }


def reference(events: pd.DataFrame, as_of: date) -> pd.DataFrame:
    """Behaviour of every device with an event in the window, one device after the other."""
    end, rows = pd.Timestamp(as_of) + pd.Timedelta(days=1), []
    for device, all_history in events[events["time"] < end].groupby("device"):
        spans = {f"{w}d": all_history[all_history["time"] >= end - pd.Timedelta(days=w)] for w in (1, 7, 30)}
        window, spans["all"] = spans["30d"], all_history
        if window.empty:
            continue
        days = all_history["time"].dt.floor("D")
        row = {"device_id": device, "recency": (end - all_history["time"].max()) / pd.Timedelta(days=1)}
        row |= rhythm(days, all_history, end) | {"tenure": (end - days.min()).days}
        hours = window["time"].dt.floor("h").drop_duplicates()
        row["night_share"] = (hours.dt.hour < 6).mean()
        row["weekend_share"] = (hours.dt.dayofweek >= 5).mean()
        nonzero = all_history[all_history["revenue"].fillna(0) != 0]["time"]
        row["revenue_recency"] = (end - nonzero.max().floor("D")).days - 1 if len(nonzero) else np.nan
        bought = all_history[all_history["bought"]]
        if len(bought):
            past = rhythm(bought["time"].dt.floor("D"), bought, end)
            past["recency"] = (end - bought["time"].max()) / pd.Timedelta(days=1)
            past["since_first"] = (end - bought["time"].min().floor("D")).days
            row |= {f"bought_{name}": value for name, value in past.items()}
        for name, span in spans.items():
            row[f"events_{name}"] = len(span)
            row[f"active_days_{name}"] = span["time"].dt.floor("D").nunique()
            row[f"bought_times_{name}"] = span["bought"].sum()
            row[f"bought_days_{name}"] = span[span["bought"]]["time"].dt.floor("D").nunique()
            row[f"revenue_sum_{name}"] = float(span["revenue"].sum())
            row[f"revenue_mean_{name}"] = span["revenue"].mean()
            row[f"revenue_max_{name}"] = span["revenue"].max()
            if name != "all":
                row[f"distinct_apps_{name}"] = span["app"].nunique()
        rows.append(row)
    return pd.DataFrame(rows)


# --- every number ---------------------------------------------------------------------------------


def test_every_column_is_described() -> None:
    behaviour, bought = computed([Event("a", at(0))], [DAY])
    assert behaviour.column_names == [
        "device_id",
        "day",
        "last_event_time",
        *(b.name for b in device_behaviours(LAYOUT)),
    ]
    assert bought.column_names == ["device_id", "day", *(b.name for b in signal_behaviours(LAYOUT))]


def test_events_and_days_are_counted_by_window() -> None:
    found = of_device(
        [Event("a", at(0)), Event("a", at(0, 13)), Event("a", at(6)), Event("a", at(29)), Event("a", at(90))]
    )
    assert [found[f"events_{w}"] for w in ("1d", "7d", "30d", "all")] == [2, 3, 4, 5]
    assert [found[f"active_days_{w}"] for w in ("1d", "7d", "30d", "all")] == [1, 2, 3, 4]
    assert found["tenure"] == 91


def test_a_device_without_an_event_in_the_window_is_left_out() -> None:
    behaviour, bought = computed([Event("a", at(30)), Event("b", at(29))], [DAY])
    assert behaviour["device_id"].to_pylist() == bought["device_id"].to_pylist() == ["b"]


def test_gaps_and_how_overdue() -> None:
    found = of_device([Event("a", at(back)) for back in (14, 10, 4)])
    assert (found["gap_mean"], found["gap_spread"], found["overdue"]) == (5, 1, 0.8)


def test_one_active_day_has_no_gap() -> None:
    found = of_device([Event("a", at(3)), Event("a", at(3, 14))])
    assert (found["gap_mean"], found["gap_spread"], found["overdue"]) == (None, None, None)


def test_amounts_of_events_that_have_one() -> None:
    revenue = [Decimal("2.5"), None, Decimal("-4.1"), Decimal(0)]
    found = of_device(
        [Event("a", at(back), revenue=r) for back, r in zip((9, 3, 2, 1), revenue, strict=True)]
    )
    assert (found["revenue_sum_7d"], found["revenue_mean_7d"], found["revenue_max_7d"]) == (-4.1, -2.05, 0)
    assert (found["revenue_sum_all"], found["revenue_recency"], found["revenue_mean_1d"]) == (-1.6, 2, None)


def test_what_never_happened_is_counted_and_has_no_recency() -> None:
    found = of_device([Event("a", at(3))])
    assert (found["bought_times_30d"], found["bought_recency"], found["bought_trend"]) == (0, None, None)


def test_hours_of_night_and_weekend() -> None:
    # 2025-03-30 is a Sunday
    found = of_device(
        [Event("a", at(1, 5)), Event("a", at(1, 6)), Event("a", at(0, 3)), Event("a", at(0, 20))]
    )
    assert (found["night_share"], found["weekend_share"]) == (0.5, 0.5)


# --- nothing leaks --------------------------------------------------------------------------------

MIDNIGHT = midnight(DAY) + timedelta(days=1)
BEFORE = [Event("a", at(2), "x", Decimal(3)), Event("a", at(9), "y", bought=True)]


@pytest.mark.parametrize(
    "later",
    [
        Event("a", MIDNIGHT, "z", Decimal(9), bought=True),
        Event("a", MIDNIGHT + timedelta(days=5), bought=True),
        Event("b", MIDNIGHT),
    ],
)
def test_nothing_from_the_as_of_midnight_on_changes_anything(later: Event) -> None:
    for before, after in zip(computed(BEFORE, [DAY]), computed([*BEFORE, later], [DAY]), strict=True):
        assert before.equals(after)


def test_the_last_microsecond_of_the_as_of_day_counts() -> None:
    found = of_device([*BEFORE, Event("a", MIDNIGHT - MICROSECOND)])
    assert (found["events_1d"], found["recency"]) == (1, pytest.approx(1e-6 / 86_400))


# --- any history ----------------------------------------------------------------------------------

histories = st.lists(
    st.builds(
        Event,
        device=st.sampled_from(["a", "b", "c"]),
        time=st.datetimes(midnight(date(2025, 2, 1)), midnight(date(2025, 4, 10))),
        app=st.none() | st.sampled_from(["x", "y", "z"]),
        revenue=st.none() | st.decimals(-99, 99, places=2),
        bought=st.booleans(),
    ),
    min_size=1,
    max_size=40,
)
AS_OF_DAYS = [date(2025, 3, 1), date(2025, 3, 8), DAY]


@settings(max_examples=25, deadline=None)
@given(histories)
def test_behaviour_is_that_of_raw_events(events: list[Event]) -> None:
    raw = pd.DataFrame(
        [(e.device, e.time, e.app, e.revenue, e.bought) for e in events],
        columns=["device", "time", "app", "revenue", "bought"],
    )
    raw["revenue"] = raw["revenue"].astype("float64")
    for as_of in AS_OF_DAYS:
        behaviour, bought = computed(events, [as_of])
        past = bought.to_pandas().drop(columns="day").set_index("device_id").add_prefix("bought_")
        ours = behaviour.to_pandas().drop(columns=["day", "last_event_time"]).join(past, "device_id")
        expected = reference(raw, as_of).reindex(columns=ours.columns)
        pd.testing.assert_frame_equal(ours, expected.astype(ours.dtypes), rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(histories)
def test_a_range_of_days_is_each_day_alone(events: list[Event]) -> None:
    together = computed(events, AS_OF_DAYS)
    alone = [computed(events, [day]) for day in AS_OF_DAYS]
    for table, days in zip(together, zip(*alone, strict=True), strict=True):
        assert table.equals(pa.concat_tables(days).combine_chunks())


@settings(max_examples=20, deadline=None)
@given(histories)
def test_devices_do_not_see_each_other(events: list[Event]) -> None:
    together = computed(events, AS_OF_DAYS)
    for device in {event.device for event in events}:
        alone = computed([event for event in events if event.device == device], AS_OF_DAYS)
        for ours, table in zip(alone, together, strict=True):
            assert ours.equals(table.filter(pa.compute.equal(table["device_id"], device)))


# --- odd inputs -----------------------------------------------------------------------------------


def test_two_rows_of_a_device_and_day_are_refused() -> None:
    daily, signal = aggregated(BEFORE)
    with pytest.raises(
        DataError, match=r"daily_fields has several rows of one device and day\n  found:    4"
    ):
        device_behaviour(pa.concat_tables([daily, daily]), LAYOUT, [DAY])
    behaviour = device_behaviour(daily, LAYOUT, [DAY])
    with pytest.raises(DataError, match="daily_signals has several rows"):
        signal_behaviour(pa.concat_tables([signal, signal]), behaviour, LAYOUT)


def test_no_day_has_any_device() -> None:
    behaviour, bought = computed([], [DAY])
    assert (behaviour.num_rows, bought.num_rows) == (0, 0)
    assert computed(BEFORE, [DAY - timedelta(days=20)])[0].num_rows == 0


def test_great_amounts_leave_small_ones_their_digits() -> None:
    great = Decimal("1e25")
    found = of_device(
        [Event("a", at(back), revenue=r) for back, r in ((9, great), (8, -great), (1, Decimal("0.01")))]
    )
    assert (found["revenue_sum_7d"], found["revenue_sum_30d"]) == (0.01, 0.01)
    assert found["revenue_max_30d"] == pytest.approx(1e25, rel=1e-15)


def test_a_look_back_of_less_than_a_week_has_no_trend() -> None:
    daily, _ = aggregated([Event("a", at(back)) for back in (0, 4, 9)])
    [row] = device_behaviour(daily, Layout(5), [DAY]).to_pylist()
    assert [row[name] for name in ("events_1d", "events_5d", "events_all", "trend")] == [1, 2, 3, None]
    assert "events_7d" not in row


def test_groups_are_turned_off() -> None:
    daily, signal = aggregated(BEFORE)
    layout = Layout(30, ("apps",), {"revenue": True}, off=("activity", "distinct", "amounts", "hours"))
    behaviour = device_behaviour(daily, layout, [DAY])
    assert behaviour.column_names[3:] == [
        "recency", "revenue_recency", "tenure", "gap_mean", "gap_spread", "overdue", "trend",
    ]  # fmt: skip
    assert signal_behaviour(signal, behaviour, Layout(30, off=["signals"])).column_names == [
        "device_id",
        "day",
    ]


@settings(max_examples=15, deadline=None)
@given(histories, st.permutations(range(10)))
def test_days_after_the_as_of_day_change_nothing_in_any_order(
    events: list[Event], shuffled: list[int]
) -> None:
    as_of = AS_OF_DAYS[0]
    after = midnight(as_of) + timedelta(days=1)
    later = [e for e in events if e.time >= after]
    moved = [
        Event(e.device, after + timedelta(days=shuffled[(e.time - after).days % 10]), bought=not e.bought)
        for e in later
    ]
    earlier = [e for e in events if e.time < after]
    for before, now in zip(computed(events, [as_of]), computed([*earlier, *moved], [as_of]), strict=True):
        assert before.equals(now)

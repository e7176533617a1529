"""Behaviour of devices as of a day: how often, how lately and how much, computed from their day aggregates.

A call works on one hash bucket of devices, with all their history, and on any number of as-of days. Totals
are integers (of 128 bits where they are decimals) and each number is rounded once, at the end, so that a day
made in a range, or beside other devices, equals the day made alone bit for bit. Each number follows from a
few sums per device and window, so that a kept state can be moved on by a day. What there is to compute is in
`behaviours`.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.features.behaviours import Layout, device_behaviours, signal_behaviours
from pipelines.steps.features.device_history import (
    AsOfRows,
    DeviceHistory,
    day_numbers,
    device_positions,
    integers,
    largest_within,
    money_within,
    running_money,
    running_total,
    sort_keys,
    sorted_devices,
)

NIGHT = (1 << 6) - 1
"""UTC hours from 0 to 6, as bits."""
SATURDAY = 5
"""Of weekdays from Monday, 0."""
THURSDAY = 3
"""The weekday of 1970-01-01."""
DAY_US = 86_400_000_000
WEEK = 7
Columns = dict[str, np.ndarray]
"""Name → float64 [rows], NaN where there is nothing to say."""


def device_behaviour(daily: pa.Table, layout: Layout, as_of_days: Sequence[date]) -> pa.Table:
    """Computes the behaviour of every device with an event in the window of an as-of day.

    Args:
        daily: `daily_fields` of the bucket, in any order: `device_id`, `day`, `events`, `last_event_time`,
            `hours`, a list of each multi-valued field's values (or of structs with a `value`) and a struct
            of each measure.
        layout: What to compute.
        as_of_days: Each is computed as if it were alone.

    Returns:
        `device_id`, `day` (the as-of day), `last_event_time` and a float64 column of each of
        `device_behaviours`, null where there is nothing to say; ordered by day and device.

    Raises:
        DataError: A device has two rows on a day.
    """
    history = DeviceHistory(daily, sorted_devices(daily), "daily_fields")
    rows = AsOfRows.with_an_event(history, layout, list(as_of_days))
    columns = _counts(rows, "events", "active_days") | _rhythm(rows, layout)
    columns["tenure"] = rows.known_days.astype(np.float64)
    if "hours" not in layout.off:
        columns |= _hours(rows, layout)
    for measure, with_max in layout.measures.items():
        columns |= _amounts(rows, measure, with_max=with_max)
    if "distinct" not in layout.off:
        for name in layout.multi_fields:
            columns |= _distinct(rows, layout, name)
    last_event_time = pa.array(history.last_event_us[rows.last]).cast(pa.timestamp("us", "UTC"))
    names = [behaviour.name for behaviour in device_behaviours(layout)]
    return _table(rows, {"last_event_time": last_event_time}, columns, names)


def signal_behaviour(signal: pa.Table, devices: pa.Table, layout: Layout) -> pa.Table:
    """Computes the past of one signal of every device as of a day.

    Args:
        signal: `daily_signals` of the signal and bucket, in any order: `device_id`, `day`, `events` and
            `last_event_time`.
        devices: `device_id` and `day`, the as-of day: whom to compute it for.
        layout: Its look-back and groups hold.

    Returns:
        `device_id`, `day` and a float64 column of each of `signal_behaviours`, where the signal never was
        counts 0 and all else null; ordered by day and device.

    Raises:
        DataError: A device has two rows of the signal on a day.
    """
    ids = sorted_devices(devices)
    history = DeviceHistory(signal, ids, "daily_signals")
    rows = AsOfRows.of(history, layout, device_positions(devices, ids), day_numbers(devices))
    columns = _counts(rows, "times", "days") | _rhythm(rows, layout)
    columns["since_first"] = np.where(rows.some, rows.known_days, np.nan)
    return _table(rows, {}, columns, [behaviour.name for behaviour in signal_behaviours(layout)])


def _counts(rows: AsOfRows, events: str, days: str) -> Columns:
    columns = {}
    for span, start in rows.spans.items():
        columns[f"{events}_{span}"] = rows.within(rows.history.events, start).astype(np.float64)
        columns[f"{days}_{span}"] = (rows.end - start).astype(np.float64)
    return columns


def _rhythm(rows: AsOfRows, layout: Layout) -> Columns:
    """Recency, gaps and trend, of a device's active days as of a signal's days."""
    history = rows.history
    since = (rows.days + 1) * DAY_US - history.last_event_us[rows.last]
    gaps = np.where(rows.some, rows.end - rows.first - 1, 0)
    total = np.where(gaps > 0, history.days[rows.last] - history.days[rows.first], 0)
    # Integers until the one division, so that nothing cancels.
    number = np.where(gaps > 0, gaps, np.nan)
    squares = rows.within(history.squared_gaps, rows.first)
    waited = rows.days - history.days[rows.last]
    return {
        "recency": np.where(rows.some, since / DAY_US, np.nan),
        "gap_mean": total / number,
        "gap_spread": np.sqrt(gaps * squares - total**2) / number,
        "overdue": waited * gaps / np.where(gaps > 0, total, np.nan),
        "trend": _trend(rows, layout),
    }


def _trend(rows: AsOfRows, layout: Layout) -> np.ndarray:
    """Events of the last week over those of a mean week between the window's or the first day and it."""
    week, window = rows.starts[min(WEEK, layout.window_days)], rows.starts[layout.window_days]
    last = rows.within(rows.history.events, week)
    before = rows.history.events[week] - rows.history.events[window]
    days = np.minimum(rows.known_days, layout.window_days) - WEEK
    days_before = np.where(days > 0, days, np.nan)
    trend: np.ndarray = (last + 1) * days_before / (before * WEEK + days_before)
    return trend


def _hours(rows: AsOfRows, layout: Layout) -> Columns:
    hours = integers(rows.history.column("hours"))
    weekday = (rows.history.days[:-1] + THURSDAY) % 7

    def active(bits: np.ndarray) -> np.ndarray:
        return rows.within(running_total(np.bitwise_count(bits)), rows.starts[layout.window_days])

    return {
        "night_share": active(hours & NIGHT) / active(hours),
        "weekend_share": active(np.where(weekday >= SATURDAY, hours, 0)) / active(hours),
    }


def _amounts(rows: AsOfRows, measure: str, *, with_max: bool) -> Columns:
    numbers = rows.history.column(measure)
    total, counted = running_money(_part(numbers, "sum")), running_total(integers(_part(numbers, "events")))
    columns = {}
    for span, start in rows.spans.items():
        amount, number = money_within(total, rows.end, start), rows.within(counted, start)
        columns[f"{measure}_sum_{span}"] = amount
        columns[f"{measure}_mean_{span}"] = amount / np.where(number > 0, number, np.nan)
        if with_max:
            columns[f"{measure}_max_{span}"] = largest_within(_part(numbers, "max"), rows.end, start)
    is_nonzero = integers(_part(numbers, "nonzero")) > 0
    # Places only grow: the newest one is another device's where it lies before the first.
    newest = np.maximum.accumulate(np.where(is_nonzero, np.arange(len(is_nonzero)), -1))[rows.last]
    age = rows.days - rows.history.days[newest]
    columns[f"{measure}_recency"] = np.where(newest >= rows.first, age, np.nan)
    return columns


def _part(numbers: pa.StructArray, name: str) -> pa.Array:
    return pc.struct_field(numbers, name)


def _distinct(rows: AsOfRows, layout: Layout, field: str) -> Columns:
    """Distinct values by window.

    A value counts from a day on which it occurs until it occurs again or leaves the window, whichever is
    sooner: the number as of a day is that of the occurrences begun less that of those ended.
    """
    positions, days, codes = _occurrences(rows, layout, field)
    same = positions * (codes.max(initial=0) + 1) + codes
    order = np.argsort(same, kind="stable")  # days stay in order
    again = np.full(len(days), np.iinfo(np.int64).max)
    earlier, later = order[:-1], order[1:]
    is_again = same[earlier] == same[later]
    again[earlier[is_again]] = days[later[is_again]]
    asked = sort_keys(rows.positions, rows.days)
    begun = np.searchsorted(sort_keys(positions, days), asked, side="right")
    columns = {}
    for window in layout.windows:
        ends = np.sort(sort_keys(positions, np.minimum(again, days + window)))
        ended = np.searchsorted(ends, asked, side="right")
        columns[f"distinct_{field}_{window}d"] = (begun - ended).astype(np.float64)
    return columns


def _occurrences(rows: AsOfRows, layout: Layout, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Device, day and code of every value that any window can hold, in the order of the history."""
    lists = rows.history.column(field)
    parents = np.repeat(np.arange(len(lists)), integers(pc.list_value_length(lists)))
    values = lists.flatten()
    if pa.types.is_struct(values.type):
        values = _part(values, "value")
    oldest = rows.days.min(initial=np.iinfo(np.int64).max) - layout.window_days
    kept = np.asarray(values.is_valid()) & (rows.history.days[parents] > oldest)
    codes = integers(values.filter(pa.array(kept)).dictionary_encode().indices)
    return rows.history.positions[parents[kept]], rows.history.days[parents[kept]], codes


def _table(rows: AsOfRows, kept: Mapping[str, pa.Array], columns: Columns, names: Sequence[str]) -> pa.Table:
    devices = pa.array(rows.history.devices, pa.string()).take(pa.array(rows.positions))
    days = pa.array(rows.days.astype(np.int32)).cast(pa.date32())
    numbers = {name: pa.array(columns[name], pa.float64(), from_pandas=True) for name in names}
    return pa.table({"device_id": devices, "day": days, **kept, **numbers})

"""Day rows of a bucket's devices, sorted once: any window of any as-of day is a difference of two totals.

What belongs here: order, places of windows, running totals. What does not: which numbers are made of them
(`behaviour`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.steps.errors import DataError
from pipelines.steps.features.behaviours import ALL, Layout

DAY_BITS = 32
"""Bits of a sort key that hold the day."""
MONEY = pa.decimal128(38, 6)
MICROS = 1e6
"""Money has six digits after the point."""


class DeviceHistory:
    """Day rows of the devices of a bucket, sorted by device and day.

    Args:
        table: `device_id`, `day`, `events`, `last_event_time` and more, in any order; rows of other devices
            are left out.
        devices: The bucket's device ids, sorted.
        name: The table's name, for messages.

    Attributes:
        positions: int64 [rows], each row's device.
        days: int64 [rows + 1], days since 1970-01-01; the last one keeps places valid that hold no row.
        first: int64 [devices], where each device's rows begin.

    Raises:
        DataError: A device has two rows on a day.
    """

    def __init__(self, table: pa.Table, devices: np.ndarray, name: str) -> None:
        positions, days = device_positions(table, devices), day_numbers(table)
        keys = sort_keys(positions, days)
        order = np.argsort(keys, kind="stable")
        order = order[np.searchsorted(keys[order], sort_keys(np.zeros(1, dtype=np.int64), NEVER))[0] :]
        self.devices, self._table, self._order, self._keys = devices, table, order, keys[order]
        if not (self._keys[1:] > self._keys[:-1]).all():
            raise DataError(
                f"{name} has several rows of one device and day",
                found=f"{len(order)} rows of {len(np.unique(self._keys))} device-days",
                expected="one row per device and day",
                remedy=f"materialize {name} of these days again",
            )
        self.positions, self.days = positions[order], np.append(days[order], 0)
        self.first = np.searchsorted(self._keys, sort_keys(np.arange(len(devices)), NEVER))

    def until(self, positions: np.ndarray, days: np.ndarray) -> np.ndarray:
        """Where each device's rows up to a day, that day included, end."""
        return np.searchsorted(self._keys, sort_keys(positions, days), side="right")

    def column(self, name: str) -> pa.Array:
        """A column in the order of the rows."""
        return self._table.column(name).combine_chunks().take(pa.array(self._order))

    @cached_property
    def events(self) -> np.ndarray:
        """Running total of the events."""
        return running_total(integers(self.column("events")))

    @cached_property
    def squared_gaps(self) -> np.ndarray:
        """Running total of the squared days since the device's row before."""
        gaps = np.diff(self.days[:-1], prepend=0)
        gaps[self.first[self.first < len(gaps)]] = 0
        return running_total(gaps**2)

    @cached_property
    def last_event_us(self) -> np.ndarray:
        """int64 [rows + 1], microseconds since 1970-01-01."""
        times = self.column("last_event_time").cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        return np.append(integers(times), 0)


NEVER = np.int64(-(1 << (DAY_BITS - 2)))
"""A day before all days."""


@dataclass(frozen=True)
class AsOfRows:
    """Devices as of a day: row r's history lies from `first[r]` up to, not including, `end[r]`.

    Attributes:
        history: Where it lies.
        positions: Of the row's device.
        days: The as-of day, since 1970-01-01.
        first: Where the device's rows begin.
        end: Where its rows after the as-of day begin.
        starts: Days of a window → where each row's begins.
    """

    history: DeviceHistory
    positions: np.ndarray
    days: np.ndarray
    first: np.ndarray
    end: np.ndarray
    starts: Mapping[int, np.ndarray]

    @classmethod
    def of(
        cls, history: DeviceHistory, layout: Layout, positions: np.ndarray, days: np.ndarray
    ) -> "AsOfRows":
        """Finds the places; ordered by day and device."""
        order = np.lexsort((positions, days))
        positions, days = positions[order], days[order]
        starts = {window: history.until(positions, days - window) for window in layout.windows}
        return cls(history, positions, days, history.first[positions], history.until(positions, days), starts)

    @classmethod
    def with_an_event(cls, history: DeviceHistory, layout: Layout, as_of_days: list[date]) -> "AsOfRows":
        """The devices with a row in the window of each as-of day."""
        as_of = np.unique(np.asarray(as_of_days, dtype="datetime64[D]").astype(np.int64))
        positions = np.tile(np.arange(len(history.devices)), len(as_of))
        days = np.repeat(as_of, len(history.devices))
        kept = history.until(positions, days) > history.until(positions, days - layout.window_days)
        return cls.of(history, layout, positions[kept], days[kept])

    @property
    def spans(self) -> dict[str, np.ndarray]:
        """Name of each window and of all history → where each row's begins."""
        return {f"{days}d": start for days, start in self.starts.items()} | {ALL: self.first}

    @property
    def some(self) -> np.ndarray:
        """Which rows have any history."""
        return self.end > self.first

    @property
    def last(self) -> np.ndarray:
        """The newest row of each history; a place that is valid where there is none."""
        newest: np.ndarray = np.maximum(self.end - 1, 0)
        return newest

    @property
    def known_days(self) -> np.ndarray:
        """Days from the first row's to the as-of day, both included; 0 where there is none."""
        days: np.ndarray = np.where(self.some, self.days + 1 - self.history.days[self.first], 0)
        return days

    def within(self, totals: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Sum from each start to the end of the as-of day, of a running total."""
        total: np.ndarray = totals[self.end] - totals[start]
        return total


# --- numbers ----------------------------------------------------------------------------------------------


def sorted_devices(table: pa.Table) -> np.ndarray:
    """The distinct device ids, in order."""
    return np.sort(pc.unique(table.column("device_id")).to_numpy(zero_copy_only=False).astype(object))


def device_positions(table: pa.Table, devices: np.ndarray) -> np.ndarray:
    """int64 [rows]: each row's device among those given; -1 where it is none of them."""
    ids = table.column("device_id").cast(pa.string())
    return integers(pc.index_in(ids, pa.array(devices, pa.string())).fill_null(-1))


def day_numbers(table: pa.Table) -> np.ndarray:
    """int64 [rows]: days since 1970-01-01."""
    return integers(table.column("day").cast(pa.date32()).cast(pa.int32()))


def sort_keys(positions: np.ndarray, days: np.ndarray | np.int64) -> np.ndarray:
    """Numbers that order by device, then by day."""
    return (positions << DAY_BITS) + days


def integers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """int64; null is 0."""
    return np.asarray(column.fill_null(0)).astype(np.int64)


def running_total(numbers: np.ndarray) -> np.ndarray:
    """int64 [rows + 1]: the sum of the numbers before each."""
    return np.concatenate([[0], np.cumsum(numbers, dtype=np.int64)])


def running_money(column: pa.Array) -> pl.Series:
    """Like `running_total`, in millionths, in integers of 128 bits; null is 0."""
    unscaled = pl.Series(pl.from_arrow(column.cast(MONEY))).to_physical().fill_null(0)
    return pl.concat([pl.Series([0], dtype=pl.Int128), unscaled.cum_sum()])


def money_within(totals: pl.Series, end: np.ndarray, start: np.ndarray) -> np.ndarray:
    """float64: sums from each start up to each end, of a running total; each rounded once."""
    return (totals.gather(end) - totals.gather(start)).cast(pl.Float64).to_numpy() / MICROS


def largest_within(column: pa.Array, end: np.ndarray, start: np.ndarray) -> np.ndarray:
    """float64: the largest from each start up to each end; NaN where there is none."""
    unscaled = pl.Series(pl.from_arrow(column.cast(MONEY))).to_physical()
    # Rounding keeps the order: the largest of rounded numbers is the largest one, rounded.
    numbers = unscaled.cast(pl.Float64).fill_null(-np.inf).to_numpy() / MICROS
    if not len(end):
        return np.empty(0)
    bounds = np.stack([start, end], axis=1).ravel()
    largest = np.maximum.reduceat(np.append(numbers, -np.inf), bounds)[::2]
    return np.where((end > start) & np.isfinite(largest), largest, np.nan)

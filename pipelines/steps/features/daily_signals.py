"""One row per signal, device and day: how many events satisfied the signal, and when the last one did.

A signal is counted for itself, so that another one changes no row of it.
"""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.label_values import label_columns, signal_predicate
from pipelines.steps.config.problems import shown_path
from pipelines.steps.config.signals import Signal
from pipelines.steps.events.event_expressions import require_condition
from pipelines.steps.table_columns import Shown, TableColumn, device_id


def signal_columns(signals: Sequence[Signal]) -> list[str]:
    """The columns of accepted events that signals are told by."""
    named = [column for signal in signals for column in label_columns(signal.condition)]
    return list(dict.fromkeys(["device_id", "day", "event_time", *named]))


def table_columns() -> dict[str, TableColumn]:
    """The columns of `daily_signals`."""
    return {
        "signal": TableColumn("string", "The signal, by its name.", shown=Shown.EVERYTHING),
        "device_id": device_id("app_events"),
        "day": TableColumn("date", "The UTC day.", {"app_events": ["day"]}, Shown.EVERYTHING),
        "events": TableColumn(
            "bigint", "Events of the day that satisfy it.", {"app_events": ["device_id"]}, Shown.EVERYTHING
        ),
        "last_event_time": TableColumn(
            "timestamp", "The newest of them, UTC.", {"app_events": ["event_time"]}, Shown.HOURS
        ),
    }


def count_signals(events: DataFrame, signals: Sequence[Signal]) -> DataFrame:
    """Counts the events of each device and day that satisfy a signal.

    Args:
        events: Accepted events with the columns of `signal_columns`.
        signals: All are counted in one pass over the events.

    Returns:
        `signal`, `device_id`, `day`, `events` (at least 1) and `last_event_time`.

    Raises:
        ConfigError: A signal does not fit the events' columns, or is no condition.
    """
    types, names = dict(events.dtypes), []
    for signal in signals:
        sql = signal_predicate(signal, types)
        require_condition(events, sql, f"{shown_path(signal.file)}: `{signal.key}`")
        names.append(F.when(F.expr(sql), F.lit(signal.name)))
    satisfied = F.explode(F.array_compact(F.array(*names))).alias("signal")
    return (
        events.select("device_id", "day", "event_time", satisfied)
        .groupBy("signal", "device_id", "day")
        .agg(F.count("*").alias("events"), F.max("event_time").alias("last_event_time"))
    )

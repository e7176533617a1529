"""One row per device and day: each field's distinct raw values of that day."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.fields import FieldSpec
from pipelines.steps.events.event_names import quoted, stored_name
from pipelines.steps.events.event_rows import text
from pipelines.steps.table_columns import Shown, TableColumn, device_id


def event_columns(fields: Sequence[FieldSpec]) -> list[str]:
    """The columns of accepted events that are aggregated; others may come and go."""
    return list(
        dict.fromkeys(["device_id", "day", "event_time", *(stored_name(field.column) for field in fields)])
    )


def table_columns(fields: Sequence[FieldSpec]) -> dict[str, TableColumn]:
    """The columns of `daily_fields`."""

    def values(field: FieldSpec) -> TableColumn:
        order = "the newest first" if field.kind == "single" else "in lexical order"
        column = stored_name(field.column)
        return TableColumn(
            "array<string>",
            f"Distinct raw values of `{field.column}` on the day, {order}.",
            {"app_events": ["event_time", column] if field.kind == "single" else [column]},
            Shown.COMMON_VALUES,
            field.min_devices,
        )

    def from_events(column: str) -> dict[str, list[str]]:
        return {"app_events": [column]}

    return {
        "device_id": device_id("app_events"),
        "day": TableColumn("date", "The UTC day.", from_events("day"), Shown.EVERYTHING),
        "events": TableColumn(
            "bigint", "Events of the device on the day.", from_events("device_id"), Shown.EVERYTHING
        ),
        "last_event_time": TableColumn(
            "timestamp", "The newest of them, UTC.", from_events("event_time"), Shown.HOURS
        ),
        **{field.name: values(field) for field in fields},
    }


def aggregate_days(events: DataFrame, fields: Sequence[FieldSpec]) -> DataFrame:
    """Aggregates accepted events to device-days.

    Args:
        events: `device_id`, `day`, `event_time` and the fields' raw columns, by their stored names.
        fields: The fields to keep.

    Returns:
        `device_id`, `day`, `events` (their number), `last_event_time`, and per field an array of
        distinct raw values as strings: of a single-valued field the newest first, of a multi-valued
        one in lexical order.
    """
    types = {column.name: column.dataType for column in events.schema}

    def distinct_values(field: FieldSpec) -> Column:
        name = stored_name(field.column)
        return _distinct_values(field, text(F.col(quoted(name)), types[name]))

    return events.groupBy("device_id", "day").agg(
        F.count("*").alias("events"),
        F.max("event_time").alias("last_event_time"),
        *[distinct_values(field).alias(field.name) for field in fields],
    )


def _distinct_values(field: FieldSpec, value: Column) -> Column:
    if field.kind == "multi":
        return F.array_sort(F.collect_set(value))
    seen = F.collect_set(F.when(value.isNotNull(), F.struct("event_time", value.alias("value"))))
    newest_first = F.sort_array(seen, asc=False)
    return F.array_distinct(F.transform(newest_first, lambda s: s["value"]))

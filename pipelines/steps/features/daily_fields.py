"""One row per device and day: how many events, when, each field's raw values and each measure's amounts."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.fields import FIELDS_FILE, FieldSpec, MeasureSpec
from pipelines.steps.config.measures import require_number
from pipelines.steps.events.event_expressions import expression_type
from pipelines.steps.events.event_names import quoted, stored_name
from pipelines.steps.events.event_rows import text
from pipelines.steps.table_columns import Shown, TableColumn, device_id

AMOUNT, TOTAL = "decimal(26,6)", "decimal(38,6)"
"""An event's amount, and the sum of a device-day's: exact, so that it depends on no order."""


def event_columns(fields: Sequence[FieldSpec], measures: Sequence[MeasureSpec] = ()) -> list[str]:
    """The columns of accepted events that are aggregated; others may come and go."""
    named = [stored_name(field.column) for field in fields]
    for measure in measures:
        # In an expression our names mean ours, in a column's name the raw one's.
        named += measure.columns if measure.column is None else [stored_name(measure.column)]
    return list(dict.fromkeys(["device_id", "day", "event_time", *named]))


AMOUNTS = f"struct<sum:{TOTAL},max:{TOTAL},events:bigint,nonzero:bigint,uncounted:bigint>"
"""Type of what a device-day says of a measure."""


def table_columns(
    fields: Sequence[FieldSpec], measures: Sequence[MeasureSpec] = ()
) -> dict[str, TableColumn]:
    """The columns of `daily_fields`."""

    def values(field: FieldSpec) -> TableColumn:
        order = "the newest first" if field.kind == "single" else "in lexical order"
        column = stored_name(field.column)
        return TableColumn(
            "array<struct<value:string,events:bigint>>",
            f"Raw values of `{field.column}` on the day, each with its number of events, {order}.",
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
        "first_event_time": TableColumn(
            "timestamp", "The oldest of them, UTC.", from_events("event_time"), Shown.HOURS
        ),
        "hours": TableColumn(
            "int", "UTC hours with an event, hour h as bit h.", from_events("event_time"), Shown.EVERYTHING
        ),
        **{field.name: values(field) for field in fields},
        **{
            measure.name: TableColumn(AMOUNTS, f"Amounts of {measure.name} on the day.")
            for measure in measures
        },
    }


def aggregate_days(
    events: DataFrame, fields: Sequence[FieldSpec], measures: Sequence[MeasureSpec] = ()
) -> DataFrame:
    """Aggregates accepted events to device-days.

    Args:
        events: `device_id`, `day`, `event_time` and the raw columns of fields and measures, by their stored
            names.
        fields: The fields to keep.
        measures: The measures to sum up.

    Returns:
        `device_id`, `day`, `events` (their number), `first_event_time`, `last_event_time`, `hours` (bit h is
        set where an event lies in the UTC hour h); per field an array of (`value`, `events`), each distinct
        raw value as a string and the number of its events: of a single-valued field the newest first, of a
        multi-valued one in lexical order; per measure a struct of exact decimals: `sum` (0 without amounts),
        `max` (null without), `events` that have an amount, `nonzero` of them, and `uncounted` events, whose
        value is NaN, infinite or beyond decimal(26,6).

    Raises:
        ConfigError: A measure is no number.
    """
    # All of a device-day meets in one task first. Values are then counted one by one, so that no row grows
    # large, and put together beside the totals, without another shuffle or a join.
    entries = _entries(_with_amounts(events, fields, measures).repartition("device_id", "day"), fields)
    per_value = entries.groupBy("device_id", "day", "our:field", "our:value").agg(
        F.count("*").alias("events"),
        F.min("event_time").alias("oldest"),
        F.max("event_time").alias("newest"),
        F.bit_or(F.expr("shiftleft(1, hour(event_time))")).alias("hours"),
        *[_total(place).alias(f"our:total {place}") for place, _ in enumerate(measures)],
    )

    def of_all_events(column: str) -> Column:
        return F.max(F.when(F.col("our:field") == _THE_EVENT, F.col(column)))

    return per_value.groupBy("device_id", "day").agg(
        of_all_events("events").alias("events"),
        of_all_events("oldest").alias("first_event_time"),
        of_all_events("newest").alias("last_event_time"),
        of_all_events("hours").alias("hours"),
        *[_ordered(place, field).alias(field.name) for place, field in enumerate(fields)],
        *[of_all_events(f"our:total {place}").alias(m.name) for place, m in enumerate(measures)],
    )


_THE_EVENT = -1
"""Takes a field's place where a row is about an event, whatever its values."""


def _entries(events: DataFrame, fields: Sequence[FieldSpec]) -> DataFrame:
    """A row for each event with its amounts, whose `our:field` is `_THE_EVENT`, and one for each value."""

    def entry(place: int, value: Column) -> Column:
        return F.struct(F.lit(place).alias("our:field"), value.cast("string").alias("our:value"))

    values = [F.col(f"our:value {place}") for place, _ in enumerate(fields)]
    entries = [entry(_THE_EVENT, F.lit(None)), *[entry(place, value) for place, value in enumerate(values)]]
    amounts = [name for name in events.columns if name.startswith(("our:amount", "our:lost"))]
    is_event = F.col("our:field") == _THE_EVENT
    return (
        events.select("device_id", "day", "event_time", *amounts, F.inline(F.array(*entries)))
        .where(is_event | F.col("our:value").isNotNull())
        .withColumns({name: F.when(is_event, F.col(name)) for name in amounts})
    )


def _ordered(place: int, field: FieldSpec) -> Column:
    value = F.col("our:value").alias("value")
    order = [value, F.col("events")]
    if field.kind == "single":
        order = [F.col("newest"), *order]
    mine = F.collect_list(F.when(F.col("our:field") == place, F.struct(*order)))
    ordered = F.sort_array(mine, asc=field.kind == "multi")
    return F.transform(
        ordered, lambda entry: F.struct(entry["value"].alias("value"), entry["events"].alias("events"))
    )


def _with_amounts(
    events: DataFrame, fields: Sequence[FieldSpec], measures: Sequence[MeasureSpec]
) -> DataFrame:
    """Id, day and time, each field's value, and each measure's amount; and whether a number is none."""
    types = {column.name: column.dataType for column in events.schema}
    columns: list[Column] = []
    for place, field in enumerate(fields):
        name = stored_name(field.column)
        columns.append(text(F.col(quoted(name)), types[name]).alias(f"our:value {place}"))
    for place, measure in enumerate(measures):
        sql = quoted(stored_name(measure.column)) if measure.column is not None else measure.sql or ""
        found = expression_type(events, sql, f"{FIELDS_FILE}: `{measure.key}`")
        require_number(FIELDS_FILE, measure, found)
        # By way of text, a float's 0.1 is 0.1 and not 0.10000000149011612.
        number = F.expr(sql).cast("string") if found == "float" else F.expr(sql)
        amount = number.try_cast(AMOUNT)
        lost = F.expr(sql).isNotNull() & amount.isNull()
        columns += [amount.alias(f"our:amount {place}"), lost.alias(f"our:lost {place}")]
    return events.select("device_id", "day", "event_time", *columns)


def _total(place: int) -> Column:
    amount, lost = F.col(f"our:amount {place}"), F.col(f"our:lost {place}")
    return F.struct(
        F.coalesce(F.sum(amount), F.lit(0)).cast(TOTAL).alias("sum"),
        F.max(amount).cast(TOTAL).alias("max"),
        F.count(amount).alias("events"),
        F.count_if(amount != 0).alias("nonzero"),
        F.count_if(lost).alias("uncounted"),
    )

"""One row per device and as-of day: the normalized tokens of the window that ends with that day.

A window holds the days `(as_of - window_days, as_of]`, whole UTC days: nothing with an event time at or
after the midnight that ends the as-of day is in it.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from math import ceil

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.behaviour_names import weights_column
from pipelines.steps.config.fields import FieldSpec
from pipelines.steps.features.normalize import normalize_values
from pipelines.steps.features.token_fields import BehaviourField
from pipelines.steps.features.token_weights import AGE_PLACE, AGES, DAYS, DAYS_PLACE, EVENTS
from pipelines.steps.row_groups import ROWS_PER_TASK
from pipelines.steps.table_columns import Shown, TableColumn, device_id

PARQUET_OPTIONS = {
    # What one task scores: small enough to be retried cheaply, large enough that a look-up of its tokens is.
    "parquet.block.row.count.limit": str(ROWS_PER_TASK),
    # A chunk whose dictionary stays below the limit holds codes alone: it reads in 0.5 µs a row, against 2.5
    # to 4.3 as strings, and takes half the space (50,000 packages do not fit into the usual 1 MiB).
    "parquet.dictionary.page.size": str(8 << 20),
    # No two rows share an id, so a dictionary of them is given up, after the work of making it.
    "parquet.enable.dictionary#device_id": "false",
    # 35 MB where snappy and lz4 take 43, and 0.2 µs a row more to read (400,000 rows of 49 tokens).
    "compression": "zstd",
}
"""Options of the files' writer, so that scoring reads them fast."""
LEAST_FILES = 4
"""Tasks that write a day at least."""
DEVICES_PER_FILE = 1_000_000
"""About 100 MB, and a few seconds of sorting for the task that writes it."""


def files_of(daily_devices: Sequence[int]) -> int:
    """The number of files that a day of tokens is written to.

    Args:
        daily_devices: Rows of `daily_fields` on each day of the window; the window's own number is not known
            before the work is done, and is mostly not many times that of its busiest day.
    """
    return max(LEAST_FILES, ceil(max(daily_devices, default=0) / DEVICES_PER_FILE))


def window(as_of: date, window_days: int, first_day: date) -> list[date]:
    """The days of one window, oldest first; those before `first_day` do not exist."""
    days = (as_of - timedelta(days=back) for back in reversed(range(window_days)))
    return [day for day in days if day >= first_day]


def table_columns(
    fields: Sequence[FieldSpec], window_days: int, behaviour: Sequence[BehaviourField] = ()
) -> dict[str, TableColumn]:
    """The columns of `feature_tokens`."""

    def tokens(field: FieldSpec) -> TableColumn:
        which = "the newest" if field.kind == "single" else f"at most {field.max_length}, of most days first"
        return TableColumn(
            "array<string>",
            f"Tokens of `{field.column}` in the last {window_days} days ({field.normalizer}): {which}.",
            {"daily_fields": [field.name]},
            Shown.COMMON_VALUES,
            field.min_devices,
        )

    def weights(field: FieldSpec) -> TableColumn:
        return TableColumn(
            "binary",
            f"A byte for each token of `{field.name}`: how many events, on how many days, how long ago.",
            {"daily_fields": [field.name]},
        )

    return {
        "device_id": device_id("daily_fields"),
        "day": TableColumn(
            "date", "The as-of day, the last of the window.", {"daily_fields": ["day"]}, Shown.EVERYTHING
        ),
        "last_event_time": TableColumn(
            "timestamp",
            "The newest event of the window, UTC.",
            {"daily_fields": ["last_event_time"]},
            Shown.HOURS,
        ),
        **{field.name: tokens(field) for field in fields},
        **{weights_column(field.name): weights(field) for field in fields},
        **{field.name: field.column for field in behaviour},
    }


def collect_tokens(
    daily: DataFrame, fields: Sequence[FieldSpec], as_of_days: Sequence[date], window_days: int
) -> DataFrame:
    """Tokens of every device with an event in the window of an as-of day.

    Args:
        daily: `daily_fields` of all the windows' days.
        fields: The fields, with their normalizers.
        as_of_days: All are made in one Spark job, each equal to being made alone.
        window_days: The look-back, the as-of day included.

    Returns:
        `device_id`, `day` (the as-of day), `last_event_time`, and per field an array of distinct tokens,
        never null: of a single-valued field at most one, the newest; of a multi-valued one at most
        `max_length`, those seen on most days first, then the newest, then in lexical order. Beside each, in
        `FIELD_weights`, a byte for every token (`token_weights`).
    """
    values = daily.select("device_id", "day", "last_event_time", F.inline(_field_values(fields)))
    tokens = values.join(_normalized(values, fields), ["field", "raw"], "left")
    # All of a device meets in one task first, so that nothing below is shuffled again, windows' copies least.
    per_day = tokens.repartition("device_id").select(
        "device_id",
        "day",
        "last_event_time",
        "field",
        "rank",
        "events",
        F.explode_outer("tokens").alias("token"),
    )
    # Raw values that share a token count as one day; done before days are copied to their windows.
    per_day = per_day.groupBy("device_id", "day", "field", "token").agg(
        F.min("rank").alias("rank"),
        F.sum("events").alias("events"),
        F.max("last_event_time").alias("last_event_time"),
    )
    age = F.datediff("as_of", "day")
    windowed = per_day.withColumn("as_of", F.explode(F.array(*[F.lit(d) for d in as_of_days]))).where(
        age.between(0, window_days - 1)
    )
    per_token = windowed.groupBy("device_id", "as_of", "field", "token").agg(
        F.max("last_event_time").alias("last_event_time"),
        F.min(F.struct(age.alias("age"), F.col("rank"))).alias("newest"),
        (-F.count("*")).alias("minus_days"),
        _weight(F.sum("events"), F.count("*"), F.min(age)).alias("weight"),
    )
    per_device = per_token.groupBy("device_id", "as_of").agg(
        F.max("last_event_time").alias("last_event_time"),
        *[_ordered_tokens(field).alias(field.name) for field in fields],
    )
    return per_device.select(
        "device_id",
        F.col("as_of").alias("day"),
        "last_event_time",
        *[F.col(field.name)["token"].alias(field.name) for field in fields],
        *[_bytes(F.col(field.name)["weight"]).alias(weights_column(field.name)) for field in fields],
    )


def _weight(events: Column, days: Column, age: Column) -> Column:
    """The code of a token, as `token_weights.codes_of` gives it."""

    def place(number: Column, edges: Sequence[int]) -> Column:
        return sum(((number >= edge).cast("int") for edge in edges[1:]), F.lit(0))

    return place(events, EVENTS) + DAYS_PLACE * place(days, DAYS) + AGE_PLACE * place(age, AGES)


def _bytes(codes: Column) -> Column:
    """A byte for each code: what Spark stores of an array takes more room, and more time to read."""
    return F.encode(F.concat_ws("", F.transform(codes, F.char)), "ISO-8859-1")


def _field_values(fields: Sequence[FieldSpec]) -> Column:
    """All of a device-day's raw values as (field, raw, rank, events), and an empty one to keep the device."""
    keep = F.array(
        F.struct(
            F.lit(None).cast("string").alias("field"),
            F.lit(None).cast("string").alias("raw"),
            F.lit(0).alias("rank"),
            F.lit(0).cast("bigint").alias("events"),
        )
    )

    def entries(field: FieldSpec) -> Column:
        return F.transform(
            field.name,
            lambda entry, rank: F.struct(
                F.lit(field.name).alias("field"),
                entry["value"].alias("raw"),
                rank.alias("rank"),
                entry["events"].alias("events"),
            ),
        )

    return F.concat(keep, *[entries(field) for field in fields])


def _normalized(values: DataFrame, fields: Sequence[FieldSpec]) -> DataFrame:
    """Tokens of each distinct (field, raw): distinct values are normalized, not rows."""
    normalizers = {field.name: field.normalizer for field in fields}

    def normalize(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for name in table.column("field").unique().to_pylist():
                part = table.filter(pa.compute.equal(table.column("field"), name))
                raw = part.column("raw").combine_chunks()
                tokens = normalize_values(raw, normalizers[name])
                columns = [part.column("field").combine_chunks(), raw, tokens]
                yield pa.RecordBatch.from_arrays(columns, names=["field", "raw", "tokens"])

    distinct = values.where("raw IS NOT NULL").select("field", "raw").distinct()
    return distinct.mapInArrow(normalize, "field string, raw string, tokens array<string>")


def _ordered_tokens(field: FieldSpec) -> Column:
    """The tokens kept, each a struct with `token` and `weight`."""
    mine = (F.col("field") == field.name) & F.col("token").isNotNull()
    if field.kind == "single":
        order, most = F.struct("newest", "token", "weight"), 1
    else:
        age = F.col("newest.age").alias("age")
        order, most = F.struct("minus_days", age, "token", "weight"), field.max_length
    ordered = F.array_sort(F.collect_list(F.when(mine, order)))
    return F.slice(ordered, 1, most)

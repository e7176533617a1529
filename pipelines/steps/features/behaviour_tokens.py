"""Behaviour on Spark: one row per device and as-of day, its numbers as tokens.

Devices are spread over hash buckets; a task computes one bucket at a time, with all its devices' history.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from math import ceil

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DateType,
    StringType,
    StructField,
    StructType,
)

from pipelines.steps.features.behaviour import device_behaviour, signal_behaviour
from pipelines.steps.features.behaviour_codes import behaviour_tokens
from pipelines.steps.features.behaviours import Layout
from pipelines.steps.features.token_fields import BehaviourField

ROWS_PER_BUCKET = 1_000_000
"""Device-days read, or made, at once: about a GB while they are computed, and a second or two."""
LEAST_BUCKETS = 4
"""Tasks that share the work at least."""
SIGNAL_COLUMNS = ("device_id", "day", "events", "last_event_time")


def daily_columns(layout: Layout) -> list[str]:
    """The columns of `daily_fields` that behaviour is computed of."""
    fields = () if "distinct" in layout.off else layout.multi_fields
    return [*SIGNAL_COLUMNS, "hours", *fields, *layout.measures]


def buckets_of(history: int, busiest_day: int, as_of_days: int) -> int:
    """The number of buckets that keeps each small, whatever is asked at once.

    Args:
        history: Device-days of all history.
        busiest_day: Of them, those of one day.
        as_of_days: For how many days rows are made; a window holds a few times the devices of a day.
    """
    return max(LEAST_BUCKETS, ceil(max(history, 4 * busiest_day * as_of_days) / ROWS_PER_BUCKET))


def collect_behaviour(
    daily: DataFrame,
    signal_days: DataFrame,
    fields: Sequence[BehaviourField],
    layout: Layout,
    as_of_days: Sequence[date],
    buckets: int,
) -> DataFrame:
    """Behaviour of every device with an event in the window of an as-of day.

    Args:
        daily: `daily_fields` of all days up to the newest as-of day; later ones change nothing.
        signal_days: `daily_signals` of these days, with the column `signal`.
        fields: What is told, in the order of the columns.
        layout: What to compute.
        as_of_days: All are made in one Spark job, each equal to being made alone.
        buckets: Of devices; the rows do not depend on it.

    Returns:
        `device_id`, `day` (the as-of day) and an array of tokens of each field.
    """
    told = [field.signal.name for field in fields if field.signal is not None]

    def compute(days: pa.Table, signal_days: pa.Table) -> pa.Table:
        numbers = device_behaviour(days, layout, as_of_days)
        columns = [numbers.column("device_id"), numbers.column("day")]
        for field in fields:
            table = numbers
            if field.signal is not None:
                past = signal_days.filter(pc.equal(signal_days.column("signal"), field.signal.name))
                table = signal_behaviour(past, numbers, layout)
            columns.append(behaviour_tokens(table, field.behaviours).cast(pa.list_(pa.string())))
        return pa.table(columns, names=names)

    names = ["device_id", "day", *(field.name for field in fields)]
    types = [StringType(), DateType(), *[ArrayType(StringType())] * len(fields)]
    schema = StructType([StructField(name, kind) for name, kind in zip(names, types, strict=True)])
    bucket = F.pmod(F.xxhash64("device_id"), F.lit(buckets)).alias("bucket")
    oldest = min(as_of_days) - timedelta(days=layout.window_days - 1)
    kept = daily.select(bucket, *SIGNAL_COLUMNS, "hours", *_fields(layout, oldest), *layout.measures)
    past = signal_days.where(F.col("signal").isin(told)).select(bucket, "signal", *SIGNAL_COLUMNS)
    return kept.groupBy("bucket").cogroup(past.groupBy("bucket")).applyInArrow(compute, schema)


def _fields(layout: Layout, oldest: date) -> list[Column]:
    """The values of multi-valued fields from a day on, without their numbers: distinct ones are counted."""
    if "distinct" in layout.off:
        return []
    # Empty before it, never null: with each row Spark has Arrow fill up the offsets of all nulls so far anew,
    # in a time that grows with the square of the rows: most of the time of 1.5 million.
    none = F.array().cast("array<string>")
    return [
        F.when(F.col("day") >= oldest, F.col(f"{name}.value")).otherwise(none).alias(name)
        for name in layout.multi_fields
    ]

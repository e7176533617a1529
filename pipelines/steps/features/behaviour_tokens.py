"""Behaviour on Spark: one row per device and as-of day, its numbers as tokens.

Devices are spread over hash buckets; a task computes one bucket at a time, with all its devices' history.
"""

from collections.abc import Sequence
from datetime import date

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
    TimestampType,
)

from pipelines.steps.features.behaviour import device_behaviour, signal_behaviour
from pipelines.steps.features.behaviour_codes import BEHAVIOUR, PAST, behaviour_tokens
from pipelines.steps.features.behaviours import Layout, device_behaviours, signal_behaviours

DEVICE_DAYS_PER_BUCKET = 1_000_000
"""About a GB while it is computed, and a second or two."""
SIGNAL_COLUMNS = ("device_id", "day", "events", "last_event_time")


def collect_behaviour(
    daily: DataFrame,
    signal_days: DataFrame,
    signals: Sequence[str],
    layout: Layout,
    as_of_days: Sequence[date],
    buckets: int,
) -> DataFrame:
    """Behaviour of every device with an event in the window of an as-of day.

    Args:
        daily: `daily_fields` of all days up to the newest as-of day; later ones change nothing.
        signal_days: `daily_signals` of these days, with the column `signal`.
        signals: Whose past is told, in the order of the columns.
        layout: What to compute.
        as_of_days: All are made in one Spark job, each equal to being made alone.
        buckets: Of devices; the rows do not depend on it.

    Returns:
        `device_id`, `day` (the as-of day), `last_event_time` and, as arrays of tokens, `behaviour` and a
        `<signal>_past` of each signal.
    """
    of_devices, of_signals = device_behaviours(layout), signal_behaviours(layout)
    told = list(signals) if of_signals else []

    def compute(days: pa.Table, signal_days: pa.Table) -> pa.Table:
        numbers = device_behaviour(days, layout, as_of_days)
        tokens = [behaviour_tokens(numbers, of_devices)]
        for name in told:
            past = signal_days.filter(pc.equal(signal_days.column("signal"), name))
            tokens.append(behaviour_tokens(signal_behaviour(past, numbers, layout), of_signals))
        columns = [numbers.column(name) for name in ("device_id", "day", "last_event_time")]
        text = [array.cast(pa.list_(pa.string())) for array in tokens]
        return pa.table([*columns, *text], names=names)

    names = ["device_id", "day", "last_event_time", BEHAVIOUR, *(f"{name}{PAST}" for name in told)]
    types = [StringType(), DateType(), TimestampType(), *[ArrayType(StringType())] * (1 + len(told))]
    schema = StructType([StructField(name, kind) for name, kind in zip(names, types, strict=True)])
    bucket = F.pmod(F.xxhash64("device_id"), F.lit(buckets)).alias("bucket")
    kept = daily.select(bucket, *SIGNAL_COLUMNS, "hours", *_fields(layout), *layout.measures)
    past = signal_days.where(F.col("signal").isin(told)).select(bucket, "signal", *SIGNAL_COLUMNS)
    return kept.groupBy("bucket").cogroup(past.groupBy("bucket")).applyInArrow(compute, schema)


def _fields(layout: Layout) -> list[Column]:
    """The values of multi-valued fields, without their numbers: nothing counts these yet."""
    if "distinct" in layout.off:
        return []
    return [F.col(f"{name}.value").alias(name) for name in layout.multi_fields]

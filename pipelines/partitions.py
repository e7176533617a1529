"""The one daily UTC partitions definition, and what a run's partitions are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import dagster as dg

from pipelines.steps.project import EventSource

MAX_PARTITIONS_PER_RUN = 366
"""One Spark job over many days beats many runs; a year bounds what one failure can cost."""
SPARK_POOL = "spark"
"""Dagster's pool of every asset that uses Spark; dagster.yaml says how many runs may hold it at once."""


@dataclass(frozen=True)
class Daily:
    """What every daily asset shares: were the policies to differ, assets would never share a run."""

    partitions: dg.DailyPartitionsDefinition
    backfill: dg.BackfillPolicy


def daily(source: EventSource) -> Daily:
    """UTC days from the first day of events to the last, or to yesterday where none is set."""
    end = datetime.combine(source.last_day + timedelta(days=1), time(), UTC) if source.last_day else None
    start = datetime.combine(source.first_day, time(), UTC)
    return Daily(
        dg.DailyPartitionsDefinition(start_date=start, end_date=end, timezone="UTC"),
        dg.BackfillPolicy.multi_run(max_partitions_per_run=MAX_PARTITIONS_PER_RUN),
    )


def days_of(context: dg.AssetExecutionContext) -> list[date]:
    """The days that a run of a daily asset is for."""
    return [date.fromisoformat(key) for key in context.partition_keys]


def checked_days(context: dg.AssetCheckExecutionContext, materialized: Sequence[str]) -> list[date]:
    """The days that a check is for: the run's, or, run by itself, the newest one materialized."""
    keys = (
        context.partition_keys if context.op_execution_context.has_partition_key_range else materialized[-1:]
    )
    return [date.fromisoformat(key) for key in keys]


def keys_of(days: Sequence[date], *prefix: str) -> list[str]:
    """Lake partition keys of days, such as "car_buyers/2025-05-30"."""
    return ["/".join([*prefix, day.isoformat()]) for day in days]

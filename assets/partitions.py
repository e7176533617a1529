"""The days of the pipeline, and which of them a run is for.

Every daily asset has the same partitions and the same backfill policy: only then can one run hold
them all. A run over a range of days, however it is launched, is one Spark job per asset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import dagster as dg

from pipelines.steps.config.fields import EventSource
from pipelines.steps.errors import ConfigError

MAX_PARTITIONS_PER_RUN = 366
"""One Spark job over many days beats many runs; a year bounds what one failure can cost."""
SCHEDULE_MINUTE = 30
"""Minute of the hour `max_late_hours` after midnight at which the day's run begins."""
LONGEST_RUN_HOURS = 6
"""Hours that max_runtime_seconds of dagster_instance.yaml lets a run take."""
SPARK_POOL = "spark"
"""Dagster's pool of assets that use Spark; dagster_instance.yaml says how many runs may hold it at once."""


@dataclass(frozen=True)
class Daily:
    """Partitions and policies of every daily asset; were they to differ, assets would never share a run."""

    partitions: dg.DailyPartitionsDefinition
    backfill: dg.BackfillPolicy
    freshness: dg.FreshnessPolicy | None


def daily(source: EventSource, today: date | None = None) -> Daily:
    """UTC days from the first day of events to the last, or to yesterday where none is set.

    Args:
        source: The events.
        today: Instead of the clock's, UTC.
    """
    end = datetime.combine(source.last_day + timedelta(days=1), time(), UTC) if source.last_day else None
    start = datetime.combine(source.first_day, time(), UTC)
    return Daily(
        dg.DailyPartitionsDefinition(start_date=start, end_date=end, timezone="UTC"),
        # The command line takes a range for this policy alone; the run itself sees to the limit.
        dg.BackfillPolicy.single_run(),
        _freshness(source, today or datetime.now(UTC).date()),
    )


def _freshness(source: EventSource, today: date) -> dg.FreshnessPolicy | None:
    """A run each day by the time that one may last after the schedule's hour; none once events have ended.

    Dagster 1.13 looks at when an asset was materialized last, for whichever day; its checks of single
    days are superseded.
    """
    if source.last_day is not None and source.last_day < today - timedelta(days=1):
        return None
    deadline = (source.max_late_hours + LONGEST_RUN_HOURS) % 24
    return dg.FreshnessPolicy.cron(
        f"{SCHEDULE_MINUTE} {deadline} * * *", timedelta(hours=LONGEST_RUN_HOURS), timezone="UTC"
    )


def days_of(context: dg.AssetExecutionContext) -> list[date]:
    """The days that a run of a daily asset is for.

    Raises:
        ConfigError: They are more than one run may hold.
    """
    return _days(context.partition_keys)


def checked_days(context: dg.AssetCheckExecutionContext) -> list[date]:
    """The days that a run of checks is for, however it was launched.

    Raises:
        ConfigError: The run is for no day: it was launched for the checks alone, without a partition.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise ConfigError(
            "a check of a daily asset was launched for no day",
            found="a run without a partition",
            expected="the day, or the range of days, whose rows are to be checked",
            remedy="launch it with a partition; or materialize the asset for the day, which checks it, too",
        )
    return _days(context.partition_keys)


def split_range(first: date, last: date) -> list[tuple[date, date]]:
    """The ranges of days that as many runs take, each of no more than one may hold."""
    ranges = []
    while first <= last:
        end = min(last, first + timedelta(days=MAX_PARTITIONS_PER_RUN - 1))
        ranges.append((first, end))
        first = end + timedelta(days=1)
    return ranges


def _days(keys: Sequence[str]) -> list[date]:
    if len(keys) > MAX_PARTITIONS_PER_RUN:
        raise ConfigError(
            "a run was launched for more days than one may hold",
            found=f"{len(keys)} days, {keys[0]} to {keys[-1]}",
            expected=f"at most {MAX_PARTITIONS_PER_RUN} days",
            remedy="launch a run for each year of the range",
        )
    return [date.fromisoformat(key) for key in keys]


def day_before(key: str) -> str:
    """The lake partition key of the day before that of another."""
    prefix, _, day = key.rpartition("/")
    return keys_of([date.fromisoformat(day) - timedelta(days=1)], *([prefix] if prefix else []))[0]


def keys_of(days: Sequence[date], *prefix: str) -> list[str]:
    """Lake partition keys of days, such as "car_buyers/2025-05-30"."""
    return ["/".join([*prefix, day.isoformat()]) for day in days]

"""feature_tokens: one row per device and as-of day, the normalized tokens of the look-back window."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

import dagster as dg
from pyspark.sql import functions as F

from assets import daily_signals
from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.config.fields import EventSource
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import (
    DAILY_FORMAT,
    MADE_WITH,
    code_version,
    daily_settings,
    measure_settings,
    settings_hold,
    signal_settings,
)
from pipelines.steps.config.signals import SIGNALS, Signal
from pipelines.steps.features.behaviour_tokens import (
    SIGNAL_COLUMNS,
    buckets_of,
    collect_behaviour,
    daily_columns,
)
from pipelines.steps.features.behaviours import layout_of
from pipelines.steps.features.feature_tokens import (
    PARQUET_OPTIONS,
    collect_tokens,
    files_of,
    table_columns,
    window,
)
from pipelines.steps.features.token_fields import behaviour_fields, settings_of_tokens, told_signals
from resources.asset_metadata import TableDescription, materialized_days
from resources.expectations import (
    Check,
    Verdict,
    blocking_names,
    check_specs,
    evaluate,
    expect,
    report,
    subjects_of,
)
from resources.lake import Lake
from resources.snapshots import Partition, Snapshot
from resources.spark import Spark
from resources.step_body import step_body

KEY = dg.AssetKey("feature_tokens")
ALL_HISTORY_DAYS = 100 * 366
"""Longer than any history."""

CHECKS = [
    Check(
        "ids_and_days_are_present",
        "id and as-of day are there and typed",
        [
            expect("ExpectColumnValuesToBeOfType", column="device_id", type_="StringType"),
            expect("ExpectColumnValuesToBeOfType", column="day", type_="DateType"),
            expect("ExpectColumnValuesToNotBeNull", column="device_id"),
        ],
    ),
    Check(
        "each_device_has_one_row_a_day",
        "a device has one row an as-of day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
    Check(
        "nothing_comes_after_the_as_of_day",
        "no feature comes from an event at or after the midnight that ends the as-of day",
        [expect("ExpectColumnValuesToBeBetween", column="microseconds_before_boundary", min_value=1)],
    ),
]
SHARE_CHECKS = [
    Check(
        "most_devices_have_tokens",
        "at least half of the devices have a token",
        [expect("ExpectColumnValuesToBeBetween", column="share_with_tokens", min_value=0.5)],
        blocking=False,
    ),
]


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before anything made from the tokens is delivered."""
    return blocking_names([*CHECKS, *SHARE_CHECKS])


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    window_days, signals = project.fields.window_days, told_signals(project, project.signals)
    # A new audience's days are made when it is trained; nobody else's are stale.
    shown_settings = settings_of_tokens(project, project.declared_signals)
    keys = {f"{SIGNALS}/{signal.name}": daily_signals.key_of(signal) for signal in signals}
    behaviour = behaviour_fields(project, project.signals)
    table = TableDescription(table_columns(project.fields.fields, window_days, behaviour), keys)
    look_back = dg.TimeWindowPartitionMapping(
        start_offset=1 - _days_read(project), allow_nonexistent_upstream_partitions=True
    )
    read = [dg.AssetKey("daily_fields"), *keys.values()]

    @dg.asset(
        key=KEY,
        deps=[dg.AssetDep(key, partition_mapping=look_back) for key in read],
        group_name="features",
        kinds={"spark", "parquet"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        freshness_policy=daily.freshness,
        code_version=code_version(shown_settings),
        metadata={**table.known(), **page("README.md")},
        tags={"stage": "features", **HOLDS_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def feature_tokens(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> dg.MaterializeResult[None]:
        """Tokens and behaviour of every device seen in the window that ends with the day."""
        made = make_days(project, spark, lake, days_of(context))
        return materialized_days(
            context,
            made,
            table,
            shared={"window_days": window_days},
        )

    @dg.multi_asset_check(
        name="feature_tokens_checks", specs=check_specs(KEY, [*CHECKS, *SHARE_CHECKS], daily.partitions)
    )
    @step_body
    def feature_tokens_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        snapshot = lake.snapshot("feature_tokens", keys_of(checked_days(context)))
        yield from report(context, check_days(project, spark, snapshot))

    return [feature_tokens, feature_tokens_checks]


def make_days(project: Project, spark: Spark, lake: Lake, as_of_days: Sequence[date]) -> Snapshot:
    """Makes the tokens and behaviour of as-of days in one go, whichever asset's run they are made in."""
    fields, window_days = project.fields.fields, project.fields.window_days
    source, layout = project.fields.events, layout_of(project.fields)
    signals = told_signals(project, project.signals)
    behaviour, back = behaviour_fields(project, project.signals), _days_read(project)
    needed = DAILY_FORMAT | daily_settings(project.fields) | measure_settings(project.fields)
    days = {str(as_of): keys_of(window(as_of, back, source.first_day)) for as_of in as_of_days}
    daily_rows = lake.snapshot("daily_fields", sorted(set().union(*days.values()))).made_with(needed)
    signal_rows = _signal_rows(lake, source, signals, daily_rows)
    recent = {key for day in as_of_days for key in keys_of(window(day, window_days, source.first_day))}
    recent_rows = daily_rows.only(sorted(recent))
    columns = ["device_id", "day", "last_event_time", *(field.name for field in fields)]
    tokens = collect_tokens(recent_rows.frame(spark.session, columns), fields, as_of_days, window_days)
    sizes = [partition.rows for partition in recent_rows.partitions]
    if behaviour:
        told = collect_behaviour(
            daily_rows.frame(spark.session, daily_columns(layout)),
            signal_rows.frame(spark.session, ["signal", *SIGNAL_COLUMNS]),
            behaviour,
            layout,
            as_of_days,
            buckets_of(daily_rows.rows, max(sizes), len(as_of_days)),
        )
        tokens = tokens.join(told, ["device_id", "day"], "left")
    written = lake.write(
        tokens,
        "feature_tokens",
        by=["day"],
        keys=keys_of(as_of_days),
        sort=["device_id"],
        files_per_partition=files_of(sizes),
        options=PARQUET_OPTIONS,
        properties={MADE_WITH: settings_of_tokens(project, project.signals)},
        made_from=lambda key: _sources(daily_rows, signal_rows, days[key]),
    )
    return lake.at("feature_tokens", written.values())


def check_days(project: Project, spark: Spark, snapshot: Snapshot) -> Iterator[Verdict]:
    """Verdicts of the checks on as-of days, whichever asset's run they were made in."""
    subjects, tokens = subjects_of(snapshot), snapshot.frame(spark.session)
    boundary = F.date_add("day", 1).cast("timestamp")
    left = F.unix_micros(boundary) - F.unix_micros("last_event_time")
    evidence = tokens.withColumn("microseconds_before_boundary", left)
    yield from evaluate(KEY, CHECKS, evidence, subjects)
    # Behaviour is told of every device.
    has_tokens = sum((F.size(field.name) for field in project.fields.fields), F.lit(0)) > 0
    shares = tokens.groupBy("day").agg(F.avg(has_tokens.cast("int")).alias("share_with_tokens"))
    yield from evaluate(KEY, SHARE_CHECKS, shares.toPandas(), subjects)


def days_to_make(project: Project, lake: Lake, as_of_days: Sequence[date]) -> list[date]:
    """The as-of days without tokens, or whose tokens other settings or former versions of their days made."""
    present = set(lake.partition_keys("feature_tokens"))
    needed = settings_of_tokens(project, project.signals)

    def is_up_to_date(key: str) -> bool:
        if key not in present:
            return False
        partition = lake.partition("feature_tokens", key)
        made_with = partition.properties.get(MADE_WITH, {})
        return settings_hold(made_with, needed) and lake.is_made_from_present(partition)

    return [day for day in as_of_days if not is_up_to_date(day.isoformat())]


def _days_read(project: Project) -> int:
    """The days up to an as-of day that its features are made from."""
    return ALL_HISTORY_DAYS if behaviour_fields(project, project.signals) else project.fields.window_days


def _signal_rows(lake: Lake, source: EventSource, signals: Sequence[Signal], daily: Snapshot) -> Snapshot:
    """Each signal's days, of the same days as `daily_fields`, by the condition it has now."""
    found: list[Partition] = []
    days = [partition.key for partition in daily.partitions]
    for signal in signals:
        keys = [f"{signal.name}/{day}" for day in days]
        found += lake.snapshot("daily_signals", keys).made_with(signal_settings(source, signal)).partitions
    return lake.at("daily_signals", found)


def _sources(daily: Snapshot, signals: Snapshot, days: Sequence[str]) -> Mapping[str, str]:
    """Versions of the partitions that a day was made from."""
    of_signals = [p.key for p in signals.partitions if p.key.rpartition("/")[2] in set(days)]
    return {**daily.only(days).versions, **signals.only(of_signals).versions}

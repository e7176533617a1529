"""feature_tokens: one row per device and as-of day, the normalized tokens of the look-back window."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg
from pyspark.sql import functions as F

from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import (
    DAILY_FORMAT,
    MADE_WITH,
    code_version,
    daily_settings,
    settings_hold,
    token_settings,
)
from pipelines.steps.features.feature_tokens import (
    PARQUET_OPTIONS,
    collect_tokens,
    files_of,
    table_columns,
    window,
)
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
from resources.snapshots import Snapshot
from resources.spark import Spark
from resources.step_body import step_body

KEY = dg.AssetKey("feature_tokens")

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
    window_days = project.fields.window_days
    look_back = dg.TimeWindowPartitionMapping(
        start_offset=1 - window_days, allow_nonexistent_upstream_partitions=True
    )

    @dg.asset(
        key=KEY,
        deps=[dg.AssetDep("daily_fields", partition_mapping=look_back)],
        group_name="features",
        kinds={"spark", "parquet"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        freshness_policy=daily.freshness,
        code_version=code_version(token_settings(project.fields)),
        metadata={**table_of(project).known(), **page("README.md")},
        tags={"stage": "features", **HOLDS_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def feature_tokens(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> dg.MaterializeResult[None]:
        """Tokens of every device seen in the window that ends with the day."""
        made = make_days(project, spark, lake, days_of(context))
        return materialized_days(
            context,
            made,
            table_of(project),
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


def table_of(project: Project) -> TableDescription:
    """The columns of the table."""
    return TableDescription(table_columns(project.fields.fields, project.fields.window_days))


def make_days(project: Project, spark: Spark, lake: Lake, as_of_days: Sequence[date]) -> Snapshot:
    """Makes the tokens of as-of days in one Spark job, whichever asset's run they are made in."""
    fields, window_days = project.fields.fields, project.fields.window_days
    first, needed = project.fields.events.first_day, DAILY_FORMAT | daily_settings(project.fields)
    windows = {str(as_of): keys_of(window(as_of, window_days, first)) for as_of in as_of_days}
    days = sorted({day for window_keys in windows.values() for day in window_keys})
    daily_rows = lake.snapshot("daily_fields", days).made_with(needed)
    columns = ["device_id", "day", "last_event_time", *(field.name for field in fields)]
    written = lake.write(
        collect_tokens(daily_rows.frame(spark.session, columns), fields, as_of_days, window_days),
        "feature_tokens",
        by=["day"],
        keys=keys_of(as_of_days),
        sort=["device_id"],
        files_per_partition=files_of([partition.rows for partition in daily_rows.partitions]),
        options=PARQUET_OPTIONS,
        properties={MADE_WITH: token_settings(project.fields)},
        made_from=lambda key: daily_rows.only(windows[key]).versions,
    )
    return lake.at("feature_tokens", written.values())


def check_days(project: Project, spark: Spark, snapshot: Snapshot) -> Iterator[Verdict]:
    """What the checks say of as-of days, whichever asset's run they were made in."""
    subjects, tokens = subjects_of(snapshot), snapshot.frame(spark.session)
    boundary = F.date_add("day", 1).cast("timestamp")
    left = F.unix_micros(boundary) - F.unix_micros("last_event_time")
    evidence = tokens.withColumn("microseconds_before_boundary", left)
    yield from evaluate(KEY, CHECKS, evidence, subjects)
    has_tokens = sum((F.size(field.name) for field in project.fields.fields), F.lit(0)) > 0
    shares = tokens.groupBy("day").agg(F.avg(has_tokens.cast("int")).alias("share_with_tokens"))
    yield from evaluate(KEY, SHARE_CHECKS, shares.toPandas(), subjects)


def days_to_make(project: Project, lake: Lake, as_of_days: Sequence[date]) -> list[date]:
    """The as-of days without tokens, or whose tokens other settings or former versions of their days made."""
    present, needed = set(lake.partition_keys("feature_tokens")), token_settings(project.fields)

    def is_up_to_date(key: str) -> bool:
        if key not in present:
            return False
        partition = lake.partition("feature_tokens", key)
        made_with = partition.properties.get(MADE_WITH, {})
        return settings_hold(made_with, needed) and lake.is_made_from_present(partition)

    return [day for day in as_of_days if not is_up_to_date(day.isoformat())]

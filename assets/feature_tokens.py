"""feature_tokens: one row per device and as-of day, the normalized tokens of the look-back window."""

from collections.abc import Iterator, Sequence

import dagster as dg
from pyspark.sql import functions as F

from pipelines.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.feature_tokens import PARQUET_OPTIONS, collect_tokens, files_of, window
from pipelines.steps.project import Project
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake, describe
from resources.spark import Spark

KEY = dg.AssetKey("feature_tokens")

CHECKS = [
    Check(
        "schema",
        "id and as-of day are there and typed",
        [
            expect("ExpectColumnValuesToBeOfType", column="device_id", type_="StringType"),
            expect("ExpectColumnValuesToBeOfType", column="day", type_="DateType"),
            expect("ExpectColumnValuesToNotBeNull", column="device_id"),
        ],
    ),
    Check(
        "unique_device_day",
        "a device has one row an as-of day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
    Check(
        "nothing_after_as_of_day",
        "no feature comes from an event at or after the midnight that ends the as-of day",
        [expect("ExpectColumnValuesToBeBetween", column="microseconds_before_boundary", min_value=1)],
    ),
    Check(
        "devices_have_tokens",
        "at least half of the devices have a token",
        [expect("ExpectColumnMeanToBeBetween", column="has_tokens", min_value=0.5)],
        blocking=False,
    ),
]


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    fields, window_days = project.fields.fields, project.fields.window_days
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
        pool=SPARK_POOL,
    )
    def feature_tokens(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> dg.MaterializeResult[None]:
        """Tokens of every device seen in the window that ends with the day."""
        as_of_days = days_of(context)
        first = project.fields.events.first_day
        needed = sorted({day for as_of in as_of_days for day in window(as_of, window_days, first)})
        daily_rows = lake.read(spark.session, "daily_fields", keys_of(needed))
        daily_devices = [lake.partition("daily_fields", key).rows for key in keys_of(needed)]
        tokens = collect_tokens(daily_rows, fields, as_of_days, window_days)
        written = lake.write(
            tokens,
            "feature_tokens",
            by=["day"],
            keys=keys_of(as_of_days),
            sort=["device_id"],
            files_per_partition=files_of(daily_devices),
            options=PARQUET_OPTIONS,
        )
        return dg.MaterializeResult(metadata={**describe(list(written.values())), "window_days": window_days})

    @dg.multi_asset_check(name="feature_tokens_checks", specs=check_specs(KEY, CHECKS))
    def feature_tokens_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        days = checked_days(context, lake.partition_keys("feature_tokens"))
        boundary = F.date_add("day", 1).cast("timestamp")
        left = F.unix_micros(boundary) - F.unix_micros("last_event_time")
        has_tokens = sum((F.size(f.name) for f in fields), F.lit(0)) > 0
        evidence = lake.read(spark.session, "feature_tokens", keys_of(days)).withColumns(
            {"microseconds_before_boundary": left, "has_tokens": has_tokens.cast("int")}
        )
        yield from evaluate(KEY, CHECKS, evidence)

    return [feature_tokens, feature_tokens_checks]

"""daily_fields: one row per device and day, each field's distinct raw values."""

from collections.abc import Iterator, Sequence

import dagster as dg
from pyspark.sql import functions as F

from pipelines.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.daily_fields import aggregate_days
from pipelines.steps.project import Project
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake, describe
from resources.spark import Spark

KEY = dg.AssetKey("daily_fields")

ROW_CHECKS = [
    Check(
        "schema",
        "id, day and last event time are there and typed",
        [
            expect("ExpectColumnValuesToBeOfType", column="device_id", type_="StringType"),
            expect("ExpectColumnValuesToBeOfType", column="day", type_="DateType"),
            expect("ExpectColumnValuesToBeOfType", column="last_event_time", type_="TimestampType"),
            expect("ExpectColumnValuesToNotBeNull", column="device_id"),
        ],
    ),
    Check(
        "unique_device_day",
        "a device has one row a day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
    Check(
        "events_within_day",
        "the last event of a row lies in its day",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="last_event_day", column_B="day")],
    ),
]
COUNT_CHECKS = [
    Check(
        "every_event_aggregated",
        "the rows' events sum up to the accepted events of the day",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="aggregated", column_B="accepted")],
    ),
]


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    fields = project.fields.fields

    @dg.asset(
        key=KEY,
        deps=["app_events"],
        group_name="features",
        kinds={"spark", "parquet"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        pool=SPARK_POOL,
    )
    def daily_fields(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> dg.MaterializeResult[None]:
        """The day's events, aggregated to one row per device."""
        days = days_of(context)
        events = lake.read(spark.session, "app_events", keys_of(days))
        written = lake.write(
            aggregate_days(events, fields), "daily_fields", by=["day"], keys=keys_of(days), sort=["device_id"]
        )
        return dg.MaterializeResult(metadata=describe(list(written.values())))

    @dg.multi_asset_check(name="daily_fields_checks", specs=check_specs(KEY, [*ROW_CHECKS, *COUNT_CHECKS]))
    def daily_fields_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        days = checked_days(context, lake.partition_keys("daily_fields"))
        rows = lake.read(spark.session, "daily_fields", keys_of(days))
        yield from evaluate(KEY, ROW_CHECKS, rows.withColumn("last_event_day", F.to_date("last_event_time")))
        sums = rows.groupBy("day").agg(F.sum("events").alias("aggregated")).toPandas()
        sums = sums.assign(day=sums["day"].astype(str)).set_index("day")
        counts = sums.reindex(keys_of(days), fill_value=0)
        counts["accepted"] = [lake.partition("app_events", key).rows for key in keys_of(days)]
        yield from evaluate(KEY, COUNT_CHECKS, counts)

    return [daily_fields, daily_fields_checks]

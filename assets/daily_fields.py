"""daily_fields: one row per device and day, each field's raw values and each measure's amounts."""

from collections.abc import Iterator, Sequence

import dagster as dg
import pandas as pd
from pyspark.sql import functions as F

from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import (
    DAILY_FORMAT,
    MADE_WITH,
    code_version,
    daily_settings,
    event_settings,
    measure_settings,
)
from pipelines.steps.features.daily_fields import aggregate_days, event_columns, table_columns
from resources.asset_metadata import TableDescription, materialized_days
from resources.expectations import Check, blocking_names, check_specs, evaluate, expect, report, subjects_of
from resources.lake import Lake
from resources.snapshots import Partition
from resources.spark import Spark
from resources.step_body import step_body

KEY = dg.AssetKey("daily_fields")

ROW_CHECKS = [
    Check(
        "ids_days_and_times_are_present",
        "id, day and last event time are there and typed",
        [
            expect("ExpectColumnValuesToBeOfType", column="device_id", type_="StringType"),
            expect("ExpectColumnValuesToBeOfType", column="day", type_="DateType"),
            expect("ExpectColumnValuesToBeOfType", column="last_event_time", type_="TimestampType"),
            expect("ExpectColumnValuesToNotBeNull", column="device_id"),
        ],
    ),
    Check(
        "each_device_has_one_row_a_day",
        "a device has one row a day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
    Check(
        "last_event_lies_in_its_day",
        "the last event of a row lies in its day",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="last_event_day", column_B="day")],
    ),
]
COUNT_CHECKS = [
    Check(
        "every_event_is_aggregated",
        "the rows' events sum up to the accepted events of the day",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="aggregated", column_B="accepted")],
    ),
    Check(
        "every_amount_is_counted",
        "no measure is NaN, infinite or of more than 20 digits before the point: such are not summed up",
        [expect("ExpectColumnValuesToBeInSet", column="uncounted", value_set=[0])],
        blocking=False,
    ),
]


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before anything made from the rows is delivered."""
    return blocking_names([*ROW_CHECKS, *COUNT_CHECKS])


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    fields, measures = project.fields.fields, project.fields.measures
    settings = DAILY_FORMAT | daily_settings(project.fields) | measure_settings(project.fields)
    needed = event_settings(project.fields.events)
    table = TableDescription(table_columns(fields, measures))

    @dg.asset(
        key=KEY,
        deps=["app_events"],
        group_name="features",
        kinds={"spark", "parquet"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        freshness_policy=daily.freshness,
        code_version=code_version(settings),
        metadata={**table.known(), **page("README.md")},
        tags={"stage": "features", **HOLDS_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def daily_fields(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> dg.MaterializeResult[None]:
        """The day's events, aggregated to one row per device."""
        keys = keys_of(days_of(context))
        events = lake.snapshot("app_events", keys).made_with(needed)
        written = lake.write(
            aggregate_days(events.frame(spark.session, event_columns(fields, measures)), fields, measures),
            "daily_fields",
            by=["day"],
            keys=keys,
            sort=["device_id"],
            properties={MADE_WITH: settings},
            made_from=lambda key: events.only([key]).versions,
        )
        return materialized_days(context, lake.at("daily_fields", written.values()), table)

    @dg.multi_asset_check(
        name="daily_fields_checks",
        specs=check_specs(KEY, [*ROW_CHECKS, *COUNT_CHECKS], daily.partitions),
    )
    @step_body
    def daily_fields_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        days = keys_of(checked_days(context))
        snapshot = lake.snapshot("daily_fields", days)
        columns = ["device_id", "day", "events", "last_event_time", *(m.name for m in measures)]
        subjects, rows = subjects_of(snapshot), snapshot.frame(spark.session, columns)
        evidence = rows.withColumn("last_event_day", F.to_date("last_event_time"))
        yield from report(context, evaluate(KEY, ROW_CHECKS, evidence, subjects))
        lost = {m.name: f"uncounted/{m.name}" for m in measures}
        sums = rows.groupBy("day").agg(
            F.sum("events").alias("aggregated"),
            *[F.sum(F.col(name)["uncounted"]).alias(column) for name, column in lost.items()],
        )
        counts = _by_day(sums.toPandas(), days)
        counts["accepted"] = [_events_of(lake, partition) for partition in snapshot.partitions]
        counts["uncounted"] = counts[list(lost.values())].sum(axis=1)
        metadata = {column: int(counts[column].sum()) for column in lost.values()}
        yield from report(context, evaluate(KEY, COUNT_CHECKS, counts, subjects, metadata))

    return [daily_fields, daily_fields_checks]


def _by_day(sums: pd.DataFrame, days: Sequence[str]) -> pd.DataFrame:
    """A line per day, 0 where it has no row."""
    sums = sums.assign(day=sums["day"].astype(str)).set_index("day")
    return sums.reindex(list(days), fill_value=0).rename_axis("day").reset_index()


def _events_of(lake: Lake, daily: Partition) -> int:
    """Accepted events that a day's rows were made from, whatever other events there are by now."""
    return lake.sources([daily], "app_events").rows

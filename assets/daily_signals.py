"""daily_signals: devices with an event that satisfies a signal, day by day; each signal is an asset."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import MADE_WITH, code_version, event_settings, signal_settings
from pipelines.steps.config.signals import SIGNALS, Signal
from pipelines.steps.features.daily_signals import count_signals, signal_columns, table_columns
from pipelines.steps.features.feature_tokens import window
from resources.asset_metadata import TableDescription, materialized_days
from resources.expectations import Check, blocking_names, check_specs, evaluate, expect, report, subjects_of
from resources.lake import Lake
from resources.spark import Spark
from resources.step_body import step_body

TABLE = "daily_signals"

CHECKS = [
    Check(
        "ids_and_times_are_present",
        "id and last event time are there, and every row counts an event",
        [expect("ExpectColumnValuesToBeInSet", column="incomplete_rows", value_set=[0])],
    ),
    Check(
        "each_device_has_one_row_a_day",
        "a device has one row a day",
        [expect("ExpectColumnValuesToBeInSet", column="repeated_rows", value_set=[0])],
    ),
    Check(
        "last_event_lies_in_its_day",
        "the last event of a row lies in its day",
        [expect("ExpectColumnValuesToBeInSet", column="rows_outside_the_day", value_set=[0])],
    ),
    Check(
        "no_event_is_made_up",
        "no more events satisfy the signal than were accepted on the day",
        [
            expect(
                "ExpectColumnPairValuesAToBeGreaterThanB",
                column_A="accepted",
                column_B="events",
                or_equal=True,
            )
        ],
    ),
    Check(
        "an_event_satisfies_it",
        "an event of the days made, or of the look-back window before them, satisfies the signal",
        [expect("ExpectColumnValuesToBeBetween", column="rows_of_the_window", min_value=1)],
        blocking=False,
    ),
]


def key_of(signal: Signal) -> dg.AssetKey:
    return dg.AssetKey([SIGNALS, signal.name])


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before anything made from a signal is delivered."""
    return blocking_names(CHECKS)


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    source, signals = project.fields.events, project.signals
    settings = {signal.name: signal_settings(source, signal) for signal in signals}
    needed, table = event_settings(source), TableDescription(table_columns())

    @dg.multi_asset(
        name=TABLE,
        specs=[
            dg.AssetSpec(
                key_of(signal),
                deps=["app_events"],
                group_name="features",
                kinds={"spark", "parquet"},
                partitions_def=daily.partitions,
                freshness_policy=daily.freshness,
                code_version=code_version(settings[signal.name]),
                metadata={**table.known(), **page("docs/conditions.md")},
                tags={"stage": "features", **HOLDS_IDS},
                description="Devices with an event that satisfies the signal, day by day.",
            )
            for signal in signals
        ],
        can_subset=True,
        backfill_policy=daily.backfill,
        pool=SPARK_POOL,
    )
    @step_body
    def daily_signals(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.MaterializeResult[None]]:
        """Counts all the signals that the run is for in one pass over the events."""
        keys = keys_of(days_of(context))
        wanted = [signal for signal in signals if key_of(signal) in context.selected_asset_keys]
        events = lake.snapshot("app_events", keys).made_with(needed)
        written = lake.write(
            count_signals(events.frame(spark.session, signal_columns(wanted)), wanted),
            TABLE,
            by=["signal", "day"],
            keys=[f"{signal.name}/{key}" for signal in wanted for key in keys],
            sort=["device_id"],
            properties=lambda key: {MADE_WITH: settings[key.split("/")[0]]},
            made_from=lambda key: events.only([key.split("/")[1]]).versions,
        )
        for signal in wanted:
            made = lake.at(TABLE, [written[f"{signal.name}/{key}"] for key in keys])
            yield materialized_days(context, made, table, asset=key_of(signal))

    @dg.multi_asset_check(
        name="daily_signals_checks",
        specs=[spec for signal in signals for spec in check_specs(key_of(signal), CHECKS, daily.partitions)],
        can_subset=True,
    )
    @step_body
    def daily_signals_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        days, asked = checked_days(context), context.selected_asset_check_keys
        wanted = [s for s in signals if key_of(s) in {check.asset_key for check in asked}]
        made = {s.name: lake.snapshot(TABLE, keys_of(days, s.name)) for s in wanted}
        keys = [partition.key for snapshot in made.values() for partition in snapshot.partitions]
        figures = _figures(lake.snapshot(TABLE, keys).frame(spark.session)).reindex(keys, fill_value=0)
        for signal in wanted:
            key, snapshot = key_of(signal), made[signal.name]
            evidence = figures.loc[[partition.key for partition in snapshot.partitions]]
            evidence["day"] = keys_of(days)
            evidence["accepted"] = [lake.sources([p], "app_events").rows for p in snapshot.partitions]
            before = window(days[0], project.fields.window_days, source.first_day)[:-1]
            evidence["rows_of_the_window"] = snapshot.rows + _rows_of(lake, signal, before)
            checks = [c for c in CHECKS if dg.AssetCheckKey(key, c.name) in asked]
            yield from report(context, evaluate(key, checks, evidence, subjects_of(snapshot)))

    return [daily_signals, daily_signals_checks]


def _figures(rows: DataFrame) -> pd.DataFrame:
    """A line per partition with rows, by its key: all that the checks ask, in one pass over all signals."""
    is_complete = F.expr("device_id IS NOT NULL AND last_event_time IS NOT NULL AND events >= 1")
    found = rows.groupBy("signal", "day").agg(
        F.count_if(~is_complete).alias("incomplete_rows"),
        (F.count("device_id") - F.count_distinct("device_id")).alias("repeated_rows"),
        F.count_if(F.to_date("last_event_time") != F.col("day")).alias("rows_outside_the_day"),
        F.sum("events").alias("events"),
    )
    table = found.toPandas()
    table.index = pd.Index(table["signal"] + "/" + table["day"].astype(str))
    return table.drop(columns=["signal", "day"])


def _rows_of(lake: Lake, signal: Signal, days: Sequence[date]) -> int:
    """Rows of the days that there are."""
    known = set(lake.partition_keys(TABLE, within=signal.name))
    keys = [key for key in keys_of(days) if key in known]
    return sum(lake.partition(TABLE, f"{signal.name}/{key}").rows for key in keys)

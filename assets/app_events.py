"""app_events: each day's raw events, deduplicated; rejected rows quarantined with their reason."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import dagster as dg
import pandas as pd

from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import MADE_WITH, code_version, event_settings
from pipelines.steps.events.app_events import (
    accept_events,
    account_rows,
    count_undated,
    label_rejections,
    quarantine_events,
    read_raw_events,
)
from pipelines.steps.events.event_alarms import (
    WEEKS_BEFORE,
    count_days,
    days_before,
    unusual_number,
    unusual_rejections,
)
from pipelines.steps.events.event_columns import check_event_columns
from pipelines.steps.events.event_names import COPIES, REASON, named_columns
from resources.expectations import Check, blocking_names, check_specs, evaluate, expect, report, subjects_of
from resources.lake import Lake, materialized
from resources.spark import Spark
from resources.step_body import step_body

KEY = dg.AssetKey("app_events")
REJECTED = "rejected_events"

STORED_CHECKS = [
    Check(
        "ids_and_times_are_present",
        "ids are strings, event times are timestamps, and neither is ever null",
        [
            expect("ExpectColumnValuesToBeOfType", column="device_id", type_="StringType"),
            expect("ExpectColumnValuesToBeOfType", column="event_time", type_="TimestampType"),
            expect("ExpectColumnValuesToNotBeNull", column="device_id"),
            expect("ExpectColumnValuesToNotBeNull", column="event_time"),
        ],
    ),
]
ACCOUNT_CHECKS = [
    Check(
        "every_row_is_accounted_for",
        "accepted + duplicate + rejected = raw, exactly, on every day",
        [expect("ExpectColumnValuesToBeInSet", column="unaccounted", value_set=[0])],
    ),
    Check(
        "most_rows_are_accepted",
        "at most half of a day's rows are rejected",
        [expect("ExpectColumnValuesToBeBetween", column="rejected_share", max_value=0.5)],
        blocking=False,
    ),
    Check(
        "no_unusual_share_is_rejected",
        "no reason rejects more of a day's rows than on the days before, nor a tenth by misreading them",
        [expect("ExpectColumnValuesToBeNull", column="unusual_rejections")],
        blocking=False,
    ),
    Check(
        "number_of_events_is_usual",
        "there are events, and not far fewer than usual on the weekday",
        [expect("ExpectColumnValuesToBeNull", column="unusual_number")],
        blocking=False,
    ),
    Check(
        "no_row_is_undated",
        "no row lacks both event time and arrival: it would belong to no day",
        [expect("ExpectColumnValuesToBeInSet", column="undated", value_set=[0])],
        blocking=False,
    ),
]


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before anything made from the events is delivered."""
    return blocking_names([*STORED_CHECKS, *ACCOUNT_CHECKS])


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    source = project.fields.events
    settings = event_settings(source)

    @dg.asset(
        key=KEY,
        group_name="features",
        kinds={"spark", "parquet"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        code_version=code_version(settings),
        pool=SPARK_POOL,
    )
    @step_body
    def app_events(context: dg.AssetExecutionContext, spark: Spark, lake: Lake) -> dg.MaterializeResult[None]:
        """Accepted events of the day, each once; the others are counted and quarantined."""
        check_event_columns(project)  # before the JVM starts
        days = days_of(context)
        raw = read_raw_events(spark.session, source, days, named_columns(project))
        labelled = label_rejections(raw, source)
        rejected = lake.write(
            quarantine_events(labelled), REJECTED, by=["day"], keys=keys_of(days), sort=[REASON]
        )
        accepted = lake.write(
            accept_events(labelled, source),
            KEY.to_user_string(),
            by=["day"],
            keys=keys_of(days),
            sort=["device_id"],
            properties={MADE_WITH: settings},
        )
        return materialized(
            list(accepted.values()), {"rejected": sum(partition.rows for partition in rejected.values())}
        )

    @dg.multi_asset_check(
        name="app_events_checks",
        specs=check_specs(KEY, [*STORED_CHECKS, *ACCOUNT_CHECKS], daily.partitions),
    )
    @step_body
    def app_events_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        days = checked_days(context)
        snapshot = lake.snapshot("app_events", keys_of(days))
        subjects = subjects_of(snapshot)
        accepted = snapshot.frame(spark.session, ["device_id", "event_time", "day", "copies"])
        rejected = lake.snapshot(REJECTED, keys_of(days)).frame(spark.session, ["day", REASON])
        yield from report(context, evaluate(KEY, STORED_CHECKS, accepted, subjects))
        raw = read_raw_events(spark.session, source, days)
        account = account_rows(raw, accepted, rejected, days).toPandas()
        account["rejected_share"] = account["rejected"] / account["raw"].clip(lower=1)
        account["undated"] = count_undated(spark.session, source, days)
        known = set(lake.partition_keys(REJECTED)) & set(lake.partition_keys("app_events"))
        compared = days_before(days, {date.fromisoformat(key) for key in known})
        counts = count_days(
            lake.snapshot("app_events", keys_of(compared)).frame(spark.session, ["day", COPIES]),
            lake.snapshot(REJECTED, keys_of(compared)).frame(spark.session, ["day", REASON]),
        )
        weeks = {day - timedelta(weeks=back) for day in days for back in range(WEEKS_BEFORE + 1)}
        events = {day: lake.partition("app_events", str(day)).rows for day in weeks if str(day) in known}
        account["unusual_rejections"] = [unusual_rejections(day, counts) for day in account["day"]]
        account["unusual_number"] = [unusual_number(day, events) for day in account["day"]]
        reasons = rejected.groupBy(REASON).count().orderBy(REASON).toPandas()
        metadata = _summary(account, reasons)
        yield from report(context, evaluate(KEY, ACCOUNT_CHECKS, account, subjects, metadata))

    return [app_events, app_events_checks]


def _summary(account: pd.DataFrame, reasons: pd.DataFrame) -> dict[str, object]:
    totals = account[["raw", "accepted", "duplicate", "rejected"]].sum()
    return {
        **{str(name): int(value) for name, value in totals.items()},
        "reasons": dg.MetadataValue.md(reasons.to_markdown(index=False)),
    }

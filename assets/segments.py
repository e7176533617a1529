"""segments: which devices of the day an advertiser gets."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import dagster as dg
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from assets.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from assets.predictions import key_of as predictions_key
from pipelines.steps.config.audience import Audience
from pipelines.steps.config.settings import code_version
from pipelines.steps.targeting.segments import select_segments, why_withheld, withheld_segments
from resources.expectations import (
    Check,
    blocking_names,
    check_specs,
    evaluate,
    expect,
    report,
    subjects_of,
    verdict,
)
from resources.lake import Lake, materialized
from resources.model_store import ModelStore
from resources.snapshots import Snapshot
from resources.spark import Spark
from resources.step_body import step_body

ROW_CHECKS = [
    Check(
        "every_probability_is_in_0_to_1",
        "every member has a probability in [0, 1]",
        [
            expect("ExpectColumnValuesToNotBeNull", column="probability"),
            expect("ExpectColumnValuesToBeBetween", column="probability", min_value=0, max_value=1),
        ],
    ),
    Check(
        "no_device_is_twice_in_a_segment",
        "a device stands once in a segment",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["segment", "device_id", "day"])],
    ),
]
WITHHELD = "withheld"
"""The property of a partition that names the segments that could not be cut, with the reason of each."""


def key_of(audience: Audience) -> dg.AssetKey:
    return dg.AssetKey([audience.name, "segments"])


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before any segment is delivered."""
    return blocking_names(ROW_CHECKS)


def own_check(segment: str) -> str:
    """The check that must have passed before this one segment is delivered; the others do not wait for it."""
    return f"{segment}_can_be_delivered"


def build(audience: Audience, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    key = key_of(audience)
    own_specs = [
        dg.AssetCheckSpec(
            own_check(segment.name),
            asset=key,
            description="its precision was reached on validation, it has a device and leaves one out; "
            "else this segment is not delivered",
            partitions_def=daily.partitions,
        )
        for segment in audience.segments
    ]

    @dg.asset(
        key=key,
        deps=[predictions_key(audience)],
        group_name=audience.name,
        kinds={"spark"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        code_version=code_version([segment.model_dump() for segment in audience.segments]),
        pool=SPARK_POOL,
    )
    @step_body
    def segments(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The devices of each segment that the audience's file asks for."""
        scored = lake.snapshot("predictions", keys_of(days_of(context), audience.name))
        # The bundle that made the predictions, be it the champion still or not.
        bundles = {
            p.key: models.find(audience.name, version=p.properties["bundle"]) for p in scored.partitions
        }
        thresholds = {key: bundle.properties["thresholds"] for key, bundle in bundles.items()}
        parts = [
            select_segments(scored.only([key]).frame(spark.session), audience.segments, cuts)
            for key, cuts in thresholds.items()
        ]
        written = lake.write(
            reduce(DataFrame.unionByName, parts),
            "segments",
            by=["audience", "day"],
            keys=list(bundles),
            sort=["segment", "device_id"],
            properties=lambda key: {
                "bundle": bundles[key].version,
                WITHHELD: withheld_segments(audience.segments, thresholds[key]),
            },
            made_from=lambda key: scored.only([key]).versions,
        )
        newest = list(written.values())[-1]
        sizes = _sizes(audience, lake.snapshot("segments", [newest.key]), spark.session)
        return materialized(
            list(written.values()),
            {**bundles[newest.key].summary(), **_figures(sizes, newest.properties[WITHHELD])},
        )

    @dg.multi_asset_check(
        name=f"{audience.name}_segments_checks",
        specs=[*check_specs(key, ROW_CHECKS, daily.partitions), *own_specs],
    )
    @step_body
    def segment_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        snapshot = lake.snapshot("segments", keys_of(checked_days(context), audience.name))
        subjects = subjects_of(snapshot)
        yield from report(context, evaluate(key, ROW_CHECKS, snapshot.frame(spark.session), subjects))
        sizes = _sizes(audience, snapshot, spark.session)
        scored = [p.rows for p in lake.sources(snapshot.partitions, "predictions").partitions]
        for segment in audience.segments:
            rows = sizes[sizes["segment"] == segment.name]
            reasons = {
                day: why_withheld(devices, all_devices, partition.properties[WITHHELD].get(segment.name))
                for day, devices, all_devices, partition in zip(
                    rows["day"], rows["devices"], scored, snapshot.partitions, strict=True
                )
            }
            bad = {day: reason for day, reason in reasons.items() if reason}
            own = verdict(
                key,
                own_check(segment.name),
                subjects,
                list(bad),
                description="; ".join(f"{day}: {reason}" for day, reason in bad.items()) or None,
                metadata={"devices": int(rows["devices"].iloc[-1]), "scored": scored[-1]},
            )
            yield from report(context, [own])

    return [segments, segment_checks]


def _sizes(audience: Audience, snapshot: Snapshot, spark: SparkSession) -> pd.DataFrame:
    """A line per day and segment asked for: devices and their mean probability; 0 without devices."""
    found = (
        snapshot.frame(spark)
        .groupBy("day", "segment")
        .agg(F.count("*").alias("devices"), F.avg("probability").alias("mean_probability"))
        .toPandas()
    )
    days = [subject.day for subject in subjects_of(snapshot)]
    wanted = pd.MultiIndex.from_product(
        [days, [segment.name for segment in audience.segments]], names=["day", "segment"]
    )
    found["day"] = found["day"].astype(str)
    return found.set_index(["day", "segment"]).reindex(wanted, fill_value=0).reset_index()


def _figures(sizes: pd.DataFrame, withheld: Mapping[str, str]) -> dict[str, Any]:
    lines = sizes.to_dict("records")
    return {
        **{f"devices/{line['segment']}": line["devices"] for line in lines},
        **{f"mean_probability/{line['segment']}": line["mean_probability"] for line in lines},
        **{f"withheld/{segment}": reason for segment, reason in withheld.items()},
    }

"""segments: which devices of the day an advertiser gets."""

from collections.abc import Iterator, Sequence
from functools import reduce

import dagster as dg
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from assets.predictions import key_of as predictions_key
from pipelines.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.project import Audience
from pipelines.steps.segments import select_segments
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake, describe
from resources.model_store import ModelStore
from resources.spark import Spark

ROW_CHECKS = [
    Check(
        "probabilities",
        "every member has a probability in [0, 1]",
        [
            expect("ExpectColumnValuesToNotBeNull", column="probability"),
            expect("ExpectColumnValuesToBeBetween", column="probability", min_value=0, max_value=1),
        ],
    ),
    Check(
        "unique_members",
        "a device stands once in a segment",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["segment", "device_id", "day"])],
    ),
]
SIZE_CHECKS = [
    Check(
        "size_above_zero_and_below_all",
        "every segment has a device, and none has them all",
        [
            expect("ExpectColumnValuesToBeBetween", column="devices", min_value=1),
            expect("ExpectColumnValuesToBeBetween", column="devices_left_out", min_value=1),
        ],
    ),
]


def key_of(audience: Audience) -> dg.AssetKey:
    return dg.AssetKey([audience.name, "segments"])


def blocking_checks() -> list[str]:
    """What must have passed before a segment is delivered."""
    return [check.name for check in [*ROW_CHECKS, *SIZE_CHECKS] if check.blocking]


def build(audience: Audience, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    key = key_of(audience)

    @dg.asset(
        key=key,
        deps=[predictions_key(audience)],
        group_name=audience.name,
        kinds={"spark"},
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        pool=SPARK_POOL,
    )
    def segments(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The devices of each segment that the audience's file asks for."""
        keys = keys_of(days_of(context), audience.name)
        # The bundle that made the predictions, be it the champion still or not.
        scored_by = {key: lake.partition("predictions", key).properties["bundles"] for key in keys}
        champions = {
            key: models.find(audience.name, version=bundles[audience.name])
            for key, bundles in scored_by.items()
        }
        parts = [
            select_segments(
                lake.read(spark.session, "predictions", [key]),
                audience.segments,
                champion.properties["thresholds"],
            )
            for key, champion in champions.items()
        ]
        written = lake.write(
            reduce(DataFrame.unionByName, parts),
            "segments",
            by=["audience", "day"],
            keys=keys,
            sort=["segment", "device_id"],
        )
        sizes = _sizes(audience, lake.read(spark.session, "segments", keys))
        return dg.MaterializeResult(
            metadata={**describe(list(written.values())), **champions[keys[-1]].summary(), **_figures(sizes)}
        )

    @dg.multi_asset_check(
        name=f"{audience.name}_segments_checks", specs=check_specs(key, [*ROW_CHECKS, *SIZE_CHECKS])
    )
    def segment_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake
    ) -> Iterator[dg.AssetCheckResult]:
        keys = keys_of(
            checked_days(context, lake.partition_keys("segments", within=audience.name)), audience.name
        )
        rows = lake.read(spark.session, "segments", keys)
        yield from evaluate(key, ROW_CHECKS, rows)
        sizes = pd.concat(
            [_sizes(audience, lake.read(spark.session, "segments", [k])).assign(key=k) for k in keys]
        )
        scored = sizes["key"].map(lambda k: lake.partition("predictions", k).rows)
        yield from evaluate(key, SIZE_CHECKS, sizes.assign(devices_left_out=scored - sizes["devices"]))

    return [segments, segment_checks]


def _sizes(audience: Audience, rows: DataFrame) -> pd.DataFrame:
    """A line per segment asked for, with its devices and their mean probability; 0 without devices."""
    found = rows.groupBy("segment").agg(
        F.count("*").alias("devices"), F.avg("probability").alias("mean_probability")
    )
    names = [segment.name for segment in audience.segments]
    sizes = found.toPandas().set_index("segment").reindex(names, fill_value=0)
    return sizes.rename_axis("segment").reset_index()


def _figures(sizes: pd.DataFrame) -> dict[str, float]:
    lines = sizes.to_dict("records")
    devices = {f"devices/{line['segment']}": line["devices"] for line in lines}
    return {**devices, **{f"mean_probability/{line['segment']}": line["mean_probability"] for line in lines}}

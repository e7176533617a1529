"""deliveries: segments whose checks have passed, published to where the audience's file says."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow.dataset as ds
from pyarrow import compute as pc

from assets import predictions, segments
from pipelines.partitions import SPARK_POOL, Daily, checked_days, days_of
from pipelines.steps.deliveries import count_rows, sha256
from pipelines.steps.errors import DataError
from pipelines.steps.project import Audience, FolderDestination
from resources.destinations import Delivery, Destinations
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake

CHECKS = [
    Check(
        "rows_equal_manifest",
        "each delivered file has the rows that its manifest and its segment have",
        [
            expect("ExpectColumnPairValuesToBeEqual", column_A="delivered_rows", column_B="manifest_rows"),
            expect("ExpectColumnPairValuesToBeEqual", column_A="delivered_rows", column_B="segment_rows"),
        ],
    ),
    Check(
        "content_equals_manifest",
        "each delivered file has the hash that its manifest says",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="delivered_sha256", column_B="manifest_sha256")],
    ),
]


def build(audience: Audience, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    key = dg.AssetKey([audience.name, "deliveries"])
    needed = {
        predictions.key_of(audience): predictions.blocking_checks(),
        segments.key_of(audience): segments.blocking_checks(),
    }

    @dg.asset(
        key=key,
        deps=[segments.key_of(audience)],
        group_name=audience.name,
        partitions_def=daily.partitions,
        backfill_policy=daily.backfill,
        pool=SPARK_POOL,
    )
    def deliveries(
        context: dg.AssetExecutionContext, lake: Lake, destinations: Destinations
    ) -> dg.MaterializeResult[None]:
        """One file per segment, day and destination, with its manifest; an equal one is not sent again."""
        days = [day.isoformat() for day in days_of(context)]
        for day in days:
            _require_passed(context.instance, needed, day)
        sent, places, repaired = 0, [], []
        for delivery in [d for day in days for d in _to_deliver(audience, lake, day)]:
            for destination in audience.destinations:
                published = destinations.publish(delivery, destination)
                sent += delivery.rows if published.sent else 0
                places.append(str(_place(destinations, delivery, destination)))
                if published.repaired is not None:
                    repaired.append(f"{places[-1]}: {published.repaired}")
        return dg.MaterializeResult(
            metadata={
                "rows_sent": sent,
                "files": len(places),
                "days": len(days),
                "places": places,
                "repaired": repaired,
            }
        )

    @dg.multi_asset_check(name=f"{audience.name}_deliveries_checks", specs=check_specs(key, CHECKS))
    def delivery_checks(
        context: dg.AssetCheckExecutionContext, lake: Lake, destinations: Destinations
    ) -> Iterator[dg.AssetCheckResult]:
        days = [
            day.isoformat()
            for day in checked_days(context, lake.partition_keys("segments", within=audience.name))
        ]
        to_deliver = [d for day in days for d in _to_deliver(audience, lake, day)]
        evidence = [
            _evidence(destinations, d, _place(destinations, d, where))
            for d in to_deliver
            for where in audience.destinations
        ]
        yield from evaluate(key, CHECKS, pd.DataFrame(evidence))

    return [deliveries, delivery_checks]


def _to_deliver(audience: Audience, lake: Lake, day: str) -> list[Delivery]:
    key = f"{audience.name}/{day}"
    scored = lake.partition("predictions", key)
    segments_version = lake.partition("segments", key).version
    files = lake.files("segments", [key])
    rows = ds.dataset(files, format="parquet")
    return [
        Delivery(
            audience.name,
            segment.name,
            day,
            files,
            rows.count_rows(filter=pc.field("segment") == segment.name),
            scored.properties["bundles"][audience.name],
            segments_version,
            scored.version,
        )
        for segment in audience.segments
    ]


def _place(destinations: Destinations, delivery: Delivery, destination: FolderDestination) -> Path:
    return destinations.place(delivery.audience, delivery.segment, delivery.day, destination)


def _evidence(destinations: Destinations, delivery: Delivery, place: Path) -> dict[str, object]:
    manifest = destinations.published(place)
    delivered = place / manifest.file if manifest else None
    if manifest is None or delivered is None or not delivered.exists():
        return {
            "delivered_rows": -1,
            "manifest_rows": manifest.rows if manifest else -2,
            "segment_rows": delivery.rows,
        }
    return {
        "delivered_rows": count_rows(delivered),
        "manifest_rows": manifest.rows,
        "segment_rows": delivery.rows,
        "delivered_sha256": sha256(delivered),
        "manifest_sha256": manifest.sha256,
    }


def _require_passed(
    instance: dg.DagsterInstance, needed: Mapping[dg.AssetKey, Sequence[str]], day: str
) -> None:
    """Refuses unless each blocking check passed on what is about to be delivered.

    Dagster blocks within one run only: a delivery on its own, after a run whose checks failed, would
    go out. A check that never reported on this materialization counts as failed.
    """
    verdicts = {
        f"{asset.to_user_string()}:{name}": _verdict(instance, dg.AssetCheckKey(asset, name), day)
        for asset, names in needed.items()
        for name in names
    }
    bad = {check: verdict for check, verdict in verdicts.items() if verdict != "passed"}
    if bad:
        raise DataError(
            f"nothing is delivered for {day}: blocking checks upstream have not passed",
            found=bad,
            expected="every blocking check passed on the materialization to deliver",
            remedy="look at the failed checks, then materialize predictions and segments of the day again",
        )


def _verdict(instance: dg.DagsterInstance, check: dg.AssetCheckKey, day: str) -> str:
    """What the check said of the day's newest materialization: passed, failed or never evaluated."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=check.asset_key, asset_partitions=[day]), limit=1
    ).records
    if not records:
        return "never materialized"
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=100)
    for execution in history:  # newest first
        evaluation = execution.event.asset_check_evaluation if execution.event else None
        if evaluation is None:
            continue
        target = evaluation.target_materialization_data
        about_it = target is not None and target.storage_id == records[0].storage_id
        if about_it or execution.run_id == records[0].run_id:
            return "passed" if evaluation.passed else "failed"
    return "never evaluated"

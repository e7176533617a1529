"""predictions: a probability per audience and device, scored on Spark in one pass for all audiences."""

from collections.abc import Iterator, Sequence

import dagster as dg
import pandas as pd

from pipelines.partitions import SPARK_POOL, Daily, checked_days, days_of, keys_of
from pipelines.steps.predictions import (
    MAX_PARITY_DIFFERENCE,
    PARQUET_OPTIONS,
    compare_with_local,
    sample_scored,
    score_files,
    worker_threads,
)
from pipelines.steps.project import Audience, Project
from resources.expectations import Check, check_specs, evaluate, expect
from resources.lake import Lake, describe
from resources.model_store import ModelStore
from resources.spark import Spark

PARITY_DEVICES = 2_000
"""Devices scored again by the parity check, about."""
PARITY = "equals_in_process_pytorch"

ROW_CHECKS = [
    Check(
        "probabilities",
        "every probability is finite and in [0, 1]",
        [
            expect("ExpectColumnValuesToBeOfType", column="probability", type_="FloatType"),
            expect("ExpectColumnValuesToNotBeNull", column="probability"),
            expect("ExpectColumnValuesToBeBetween", column="probability", min_value=0, max_value=1),
        ],
    ),
    Check(
        "unique_device_day",
        "a device is scored once a day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
]
COUNT_CHECKS = [
    Check(
        "every_device_scored",
        "there are as many predictions as devices with feature tokens",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="scored", column_B="devices")],
    ),
]


def key_of(audience: Audience) -> dg.AssetKey:
    return dg.AssetKey([audience.name, "predictions"])


def blocking_checks() -> list[str]:
    """What must have passed before anything made from predictions is delivered."""
    return [check.name for check in [*ROW_CHECKS, *COUNT_CHECKS] if check.blocking] + [PARITY]


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    specs = [
        dg.AssetSpec(
            key_of(audience),
            deps=["feature_tokens", [audience.name, "champion_model"]],
            group_name=audience.name,
            kinds={"spark", "pytorch"},
            partitions_def=daily.partitions,
            description="The probability that each device converts within the horizon.",
        )
        for audience in project.audiences
    ]

    @dg.multi_asset(
        name="predictions", specs=specs, can_subset=True, backfill_policy=daily.backfill, pool=SPARK_POOL
    )
    def predictions(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> Iterator[dg.MaterializeResult[None]]:
        """Reads and encodes the feature tokens once, whatever the number of audiences."""
        days = days_of(context)
        wanted = [a for a in project.audiences if key_of(a) in context.selected_asset_keys]
        champions = {a.name: models.current(a.name, "champion") for a in wanted}
        bundles = {name: models.bundle_ref(record) for name, record in champions.items()}
        threads = worker_threads(spark.session, bundles)
        context.log.info("a bundle of each of %d audiences is loaded; threads: %s", len(bundles), threads)
        files = lake.files("feature_tokens", keys_of(days))
        devices = {day: lake.partition("feature_tokens", day).rows for day in keys_of(days)}
        expected = {f"{name}/{day}": rows for name in champions for day, rows in devices.items()}
        written = lake.write(
            score_files(spark.session, files, bundles),
            "predictions",
            by=["audience", "day"],
            keys=list(expected),
            expected_rows=expected,
            files_per_partition=None,
            options=PARQUET_OPTIONS,
            properties={"bundles": {name: record.version for name, record in champions.items()}},
        )
        for audience in wanted:
            record = champions[audience.name]
            yield dg.MaterializeResult(
                asset_key=key_of(audience),
                metadata={
                    **describe([written[key] for key in keys_of(days, audience.name)]),
                    **record.summary(),
                    "threads_per_task": threads,
                },
            )

    return [predictions, *[_prediction_checks(audience) for audience in project.audiences]]


def _prediction_checks(audience: Audience) -> dg.AssetChecksDefinition:
    key = key_of(audience)
    parity_spec = dg.AssetCheckSpec(
        PARITY,
        asset=key,
        description=f"a sample scored again in process differs by {MAX_PARITY_DIFFERENCE} at most",
        blocking=True,
    )

    @dg.multi_asset_check(
        name=f"{audience.name}_predictions_checks",
        specs=[*check_specs(key, [*ROW_CHECKS, *COUNT_CHECKS]), parity_spec],
    )
    def prediction_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> Iterator[dg.AssetCheckResult]:
        days = checked_days(context, lake.partition_keys("predictions", within=audience.name))
        rows = lake.read(spark.session, "predictions", keys_of(days, audience.name))
        yield from evaluate(key, ROW_CHECKS, rows)
        counts = pd.DataFrame(
            {
                "scored": [lake.partition("predictions", k).rows for k in keys_of(days, audience.name)],
                "devices": [lake.partition("feature_tokens", k).rows for k in keys_of(days)],
            }
        )
        yield from evaluate(key, COUNT_CHECKS, counts)
        version = lake.partition("predictions", keys_of(days, audience.name)[-1]).properties["bundles"][
            audience.name
        ]
        scorer = models.load(audience.name, version=version)
        tokens = lake.read(spark.session, "feature_tokens", keys_of(days))
        parity = compare_with_local(
            sample_scored(rows, tokens, int(counts["devices"].sum()), PARITY_DEVICES), scorer
        )
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name=PARITY,
            passed=parity.passed,
            metadata={**parity.as_metadata(), "threshold": MAX_PARITY_DIFFERENCE},
        )

    return prediction_checks

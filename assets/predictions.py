"""predictions: a probability per audience and device, scored on Spark in one pass for all audiences."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, Daily, checked_days, day_before, days_of, keys_of
from pipelines.steps.config.audience import Audience
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import MADE_WITH, code_version, fields_of_settings
from pipelines.steps.errors import AudienceFactoryError, BundleError, DataError
from pipelines.steps.features.token_fields import audience_fields, names_of
from pipelines.steps.models.bundle import read_manifest
from pipelines.steps.scoring.parity import MAX_PARITY_DIFFERENCE, Parity, compare_with_local, sample_scored
from pipelines.steps.scoring.predictions import (
    PARQUET_OPTIONS,
    SCORED,
    score_files,
    table_columns,
    worker_threads,
)
from pipelines.steps.scoring.score_distribution import ScoreDistribution, read_distribution
from resources.asset_metadata import Figures, TableDescription, materialized_days
from resources.expectations import (
    Check,
    Subject,
    Verdict,
    blocking_names,
    check_specs,
    evaluate,
    expect,
    report,
    subjects_of,
    verdict,
)
from resources.lake import Lake
from resources.model_log import CHAMPION, ModelRecord
from resources.model_store import ModelStore
from resources.snapshots import Partition, Snapshot
from resources.spark import Spark
from resources.step_body import step_body

PARITY_DEVICES = 2_000
"""Devices scored again by the parity check of a run, about."""
LEAST_PARITY_DEVICES = 100
"""Devices that it scores of each day at least."""
PARITY = "scores_equal_pytorch_in_process"
SCORES = "champion_can_score"

ROW_CHECKS = [
    Check(
        "every_probability_is_in_0_to_1",
        "every probability is finite and in [0, 1]",
        [
            expect("ExpectColumnValuesToBeOfType", column="probability", type_="FloatType"),
            expect("ExpectColumnValuesToNotBeNull", column="probability"),
            expect("ExpectColumnValuesToBeBetween", column="probability", min_value=0, max_value=1),
        ],
    ),
    Check(
        "each_device_is_scored_once_a_day",
        "a device is scored once a day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
]
COUNT_CHECKS = [
    Check(
        "every_device_is_scored",
        "there are as many predictions as devices with feature tokens",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="scored", column_B="devices")],
    ),
    Check(
        "there_is_a_device_to_score",
        "there is a device to score: the look-back window holds an event",
        [expect("ExpectColumnValuesToBeBetween", column="scored", min_value=1)],
    ),
]


def key_of(audience: Audience) -> dg.AssetKey:
    return dg.AssetKey([audience.name, "predictions"])


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before anything made from predictions is delivered."""
    return [*blocking_names([*ROW_CHECKS, *COUNT_CHECKS]), PARITY]


def build(project: Project, daily: Daily) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    tables = {
        a.name: TableDescription(table_columns(names_of(audience_fields(project, a))))
        for a in project.audiences
    }
    specs = [
        dg.AssetSpec(
            key_of(audience),
            deps=["feature_tokens", [audience.name, "champion_model"]],
            group_name=audience.name,
            # Which engine scores, the champion decides; the metadata of a day names it.
            kinds={"spark", "parquet"},
            partitions_def=daily.partitions,
            freshness_policy=daily.freshness,
            code_version=code_version([SCORED]),
            metadata={**tables[audience.name].known(), **page("docs/scoring.md")},
            tags={"stage": "scoring", **HOLDS_IDS},
            description="The probability that each device converts within the horizon.",
        )
        for audience in project.audiences
    ]

    scores = [
        dg.AssetCheckSpec(
            SCORES,
            asset=key_of(audience),
            description="there is a champion, its bundle is what was recorded, and it was trained on such "
            "tokens; else this audience is not scored",
            partitions_def=daily.partitions,
        )
        for audience in project.audiences
    ]

    @dg.multi_asset(
        name="predictions",
        specs=specs,
        check_specs=scores,
        can_subset=True,
        backfill_policy=daily.backfill,
        pool=SPARK_POOL,
    )
    @step_body
    def predictions(
        context: dg.AssetExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        """Reads and encodes the feature tokens once, whatever the number of audiences.

        An audience whose champion cannot score stops nobody else's.
        """
        days = days_of(context)
        wanted = [a for a in project.audiences if key_of(a) in context.selected_asset_keys]
        tokens = lake.snapshot("feature_tokens", keys_of(days))
        champions, refused = _find_champions(wanted, models, tokens)
        yield from report(context, _champion_verdicts(wanted, champions, refused, keys_of(days)))
        for error in refused.values():
            context.log.error(str(error))
        if not champions:
            raise next(iter(refused.values()))
        bundles = {name: models.bundle_ref(record) for name, record in champions.items()}
        threads = worker_threads(spark.session, bundles)
        context.log.info("a bundle of each of %d audiences is loaded; threads: %s", len(bundles), threads)
        expected = {f"{name}/{p.key}": p.rows for name in champions for p in tokens.partitions}
        written = lake.write(
            score_files(spark.session, tokens.files(), bundles),
            "predictions",
            by=["audience", "day"],
            keys=list(expected),
            expected_rows=expected,
            files_per_partition=None,
            options=PARQUET_OPTIONS,
            properties=lambda key: {"bundle": champions[key.split("/")[0]].version},
            made_from=lambda key: tokens.only([key.split("/")[1]]).versions,
        )
        for name, record in champions.items():
            scored = lake.at("predictions", [written[key] for key in keys_of(days, name)])
            engine = models.manifest(record).engine
            yield materialized_days(
                context,
                scored,
                tables[name],
                score_figures(context, lake),
                {**record.summary(), "engine": engine, "threads_per_task": threads},
                dg.AssetKey([name, "predictions"]),
            )

    return [predictions, *[_prediction_checks(audience, daily) for audience in project.audiences]]


def score_figures(context: dg.AssetExecutionContext, lake: Lake) -> Figures:
    """Each day's mean and deciles, and how far they moved since the day before, where that was scored."""

    scored = set(lake.partition_keys("predictions"))

    @lru_cache(maxsize=2)  # the day and the day before
    def distribution(partition_key: str) -> ScoreDistribution:
        return read_distribution(lake.snapshot("predictions", [partition_key]).files())

    def drift(key: str, day: ScoreDistribution) -> Mapping[str, Any]:
        before = day_before(key)
        if before not in scored:
            return {}
        try:
            earlier = distribution(before)
        except DataError as error:
            # Of that day the damage will be told where it is read; of this one nothing is wrong.
            context.log.warning(f"no drift since {before}: {error}")
            return {}
        return {"drift_psi": day.psi(earlier)} if earlier.devices else {}

    def figures(partition: Partition) -> Mapping[str, Any]:
        day = distribution(partition.key)
        if not day.devices:
            return {}
        deciles = {f"decile/{tenth}": value for tenth, value in enumerate(day.quantiles(), start=1)}
        return {"mean_probability": day.mean, **deciles, **drift(partition.key, day)}

    return figures


def _find_champions(
    audiences: Sequence[Audience], models: ModelStore, tokens: Snapshot
) -> tuple[dict[str, ModelRecord], dict[str, AudienceFactoryError]]:
    """The champions that can score the tokens; of the other audiences, the reason why theirs cannot."""
    champions: dict[str, ModelRecord] = {}
    refused: dict[str, AudienceFactoryError] = {}
    for audience in audiences:
        try:
            record = models.current(audience.name, CHAMPION)
            bundle = models.bundle(record)
            fields = [field.name for field in read_manifest(bundle).fields]
            settings = fields_of_settings(record.properties.get(MADE_WITH, {}), fields)
            tokens.made_with(settings, by=f"the champion {record.version} of {audience.name}")
            champions[audience.name] = record
        except (BundleError, DataError) as error:
            refused[audience.name] = error
    return champions, refused


def _champion_verdicts(
    audiences: Sequence[Audience],
    champions: Mapping[str, ModelRecord],
    refused: Mapping[str, AudienceFactoryError],
    days: Sequence[str],
) -> Iterator[Verdict]:
    for audience in audiences:
        record, error = champions.get(audience.name), refused.get(audience.name)
        yield verdict(
            key_of(audience),
            SCORES,
            [Subject(record.version if record else "none", day) for day in days],
            days if error else [],
            description=str(error) if error else None,
        )


def _prediction_checks(audience: Audience, daily: Daily) -> dg.AssetChecksDefinition:
    key = key_of(audience)
    parity_spec = dg.AssetCheckSpec(
        PARITY,
        asset=key,
        description=f"a sample scored again in process differs by {MAX_PARITY_DIFFERENCE} at most",
        blocking=True,
        partitions_def=daily.partitions,
    )

    @dg.multi_asset_check(
        name=f"{audience.name}_predictions_checks",
        specs=[*check_specs(key, [*ROW_CHECKS, *COUNT_CHECKS], daily.partitions), parity_spec],
    )
    @step_body
    def prediction_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> Iterator[dg.AssetCheckResult]:
        snapshot = lake.snapshot("predictions", keys_of(checked_days(context), audience.name))
        subjects, rows = subjects_of(snapshot), snapshot.frame(spark.session)
        yield from report(context, evaluate(key, ROW_CHECKS, rows, subjects))
        tokens = lake.sources(snapshot.partitions, "feature_tokens")
        counts = pd.DataFrame(
            {
                "day": [subject.day for subject in subjects],
                "scored": [partition.rows for partition in snapshot.partitions],
                "devices": [partition.rows for partition in tokens.partitions],
            }
        )
        yield from report(context, evaluate(key, COUNT_CHECKS, counts, subjects))
        devices = dict(zip(counts["day"], counts["devices"], strict=True))
        wanted = max(PARITY_DEVICES // len(devices), LEAST_PARITY_DEVICES)
        sample = sample_scored(rows, tokens.frame(spark.session), devices, wanted)
        parities: dict[str, Parity] = {}
        for version, days in _days_by_bundle(snapshot).items():
            scorer = models.load(audience.name, version=version)
            parities |= {day: compare_with_local(_rows_of(sample, day), scorer) for day in days}
        worst = max(parities.values(), key=lambda parity: (parity.count > 0, parity.max))
        parity = verdict(
            key,
            PARITY,
            subjects,
            [day for day, parity in parities.items() if devices[day] and not parity.passed],
            metadata={**worst.as_metadata(), "threshold": MAX_PARITY_DIFFERENCE},
        )
        yield from report(context, [parity])

    return prediction_checks


def _days_by_bundle(snapshot: Snapshot) -> Mapping[str, list[str]]:
    """Bundle → the days that it scored."""
    days: dict[str, list[str]] = {}
    for subject, partition in zip(subjects_of(snapshot), snapshot.partitions, strict=True):
        days.setdefault(partition.properties["bundle"], []).append(subject.day or "")
    return days


def _rows_of(sample: pa.Table, day: str) -> pa.Table:
    return sample.filter(pc.equal(sample.column("day"), pa.scalar(date.fromisoformat(day))))

"""training_set: one audience's labelled, encoded rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any

import dagster as dg
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from assets.descriptions import HOLDS_IDS, page
from assets.partitions import SPARK_POOL, keys_of
from pipelines.steps.config.audience import Audience
from pipelines.steps.config.label_values import label_columns
from pipelines.steps.config.project import Project
from pipelines.steps.config.settings import MADE_WITH, code_version, event_settings
from pipelines.steps.features.token_fields import audience_fields, names_of, settings_of_tokens
from pipelines.steps.labels.as_of_days import label_days, matured_as_of_days, out_of_time_day
from pipelines.steps.labels.training_rows import (
    IN_TIME,
    LEFT_OUT,
    OUT_OF_TIME,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
)
from pipelines.steps.labels.training_set import (
    PromotionBlock,
    build_rows,
    class_balance,
    class_balances,
    count_splits,
    table_columns,
)
from resources.asset_metadata import TableDescription, materialized, text_table
from resources.expectations import Check, Subject, check_specs, evaluate, expect, report
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark
from resources.step_body import step_body

IN_TIME_SPLITS = [LEFT_OUT, TRAIN, VALIDATION, TEST, OUT_OF_TIME]
ROW_CHECKS = [
    Check(
        "labels_and_splits_are_known",
        "labels are 0 or 1, splits are train, validation, test or promotion",
        [
            expect("ExpectColumnValuesToBeInSet", column="label", value_set=[0, 1]),
            expect("ExpectColumnValuesToBeInSet", column="split", value_set=sorted(SPLIT_NAMES)),
            expect("ExpectColumnValuesToBeInSet", column=IN_TIME, value_set=IN_TIME_SPLITS),
            expect("ExpectColumnValuesToNotBeNull", column="device_id"),
        ],
    ),
    Check(
        "each_device_has_one_row_a_day",
        "a device has one row an as-of day",
        [expect("ExpectCompoundColumnsToBeUnique", column_list=["device_id", "day"])],
    ),
    Check(
        "every_id_is_in_the_vocabulary",
        "every id of every field is one that the vocabulary gives",
        [expect("ExpectColumnValuesToBeInSet", column="ids_outside_vocabulary", value_set=[0])],
    ),
]
SPLIT_CHECKS = [
    Check(
        "every_split_has_both_classes",
        "each split has positives and negatives",
        [expect("ExpectColumnValuesToBeBetween", column="rarer_class", min_value=1)],
    ),
    Check(
        "no_device_is_in_two_splits",
        "a device is in the same split on all its as-of days",
        [expect("ExpectColumnValuesToBeInSet", column="devices_in_two_splits", value_set=[0])],
    ),
    Check(
        "nothing_rehearsed_on_is_decided_after_the_out_of_time_day",
        "no label that a rehearsal trains or validates on is decided after the newest as-of day",
        [expect("ExpectColumnValuesToBeInSet", column="rows_decided_later", value_set=[0])],
    ),
]


def build(project: Project, audience: Audience) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    key = dg.AssetKey([audience.name, "training_set"])
    fields = audience_fields(project, audience)
    settings = settings_of_tokens(project, project.signals_of(audience))
    table = TableDescription(table_columns(audience, fields))
    event_columns = list(dict.fromkeys(["device_id", "event_time", *label_columns(audience.label)]))

    @dg.asset(
        key=key,
        deps=["feature_tokens", "feature_vocabulary", "app_events"],
        group_name=audience.name,
        kinds={"spark", "parquet"},
        code_version=code_version([settings, _own_settings(audience)]),
        metadata={**table.known(), **page("docs/models.md")},
        tags={"stage": "labels", **HOLDS_IDS},
        pool=SPARK_POOL,
    )
    @step_body
    def training_set(spark: Spark, lake: Lake, models: ModelStore) -> dg.MaterializeResult[None]:
        """Devices × as-of days, labelled by what happened in the horizon after each."""
        session, vocabulary = spark.session, models.vocabulary().only(names_of(fields))
        models.keep_vocabulary(vocabulary)
        known = [pd.Timestamp(key).date() for key in lake.partition_keys("app_events")]
        as_of_days = matured_as_of_days(audience, known, project.fields.window_days)
        rehearses = audience.training.rehearse
        out_of_time = out_of_time_day(as_of_days, audience.horizon_days) if rehearses else None
        outcome_days = sorted({day for d in as_of_days for day in label_days(d, audience.horizon_days)})
        tokens = lake.snapshot("feature_tokens", keys_of(as_of_days)).made_with(settings)
        events = lake.snapshot("app_events", keys_of(outcome_days)).made_with(
            event_settings(project.fields.events)
        )
        rows = build_rows(
            tokens.frame(session, ["device_id", "day", *vocabulary.columns]),
            events.frame(session, event_columns),
            audience,
            vocabulary,
            out_of_time,
        )
        properties: dict[str, Any] = {
            "vocabulary_hash": vocabulary.hash,
            "as_of_days": keys_of(as_of_days),
            "out_of_time_day": str(out_of_time) if out_of_time else None,
            "negatives_kept": audience.training.negatives_kept,
            "promotion_block": PromotionBlock(audience.training.promotion_fraction).to_dict(),
        }
        partition = lake.write(
            rows.withColumn("audience", F.lit(audience.name)),
            "training_set",
            by=["audience"],
            keys=[audience.name],
            sort=["device_id", "day"],
            properties={**properties, MADE_WITH: settings},
            made_from=lambda _: {**tokens.versions, **events.versions},
        )[audience.name]
        written = lake.at("training_set", [partition])
        splits = count_splits(written.frame(session, ["day", "split", "label"]))
        return materialized(written, table, {**properties, **_balance(splits, audience)})

    @dg.multi_asset_check(
        name=f"{audience.name}_training_set_checks", specs=check_specs(key, [*ROW_CHECKS, *SPLIT_CHECKS])
    )
    @step_body
    def training_set_checks(
        context: dg.AssetCheckExecutionContext, spark: Spark, lake: Lake, models: ModelStore
    ) -> Iterator[dg.AssetCheckResult]:
        partition = lake.partition("training_set", audience.name)
        subjects, rows = (
            [Subject(partition.version)],
            lake.read(spark.session, "training_set", [audience.name]),
        )
        sizes = models.vocabulary(partition.properties["vocabulary_hash"]).sizes
        evidence = rows.withColumn("ids_outside_vocabulary", _count_outside(sizes))
        yield from report(context, evaluate(key, ROW_CHECKS, evidence, subjects))
        splits = _splits(rows, audience.horizon_days)
        counts = pd.DataFrame(count_splits(rows)).to_markdown(index=False)
        metadata = {"rows": dg.MetadataValue.md(counts)}
        yield from report(context, evaluate(key, SPLIT_CHECKS, splits, subjects, metadata))

    return [training_set, training_set_checks]


def _balance(splits: Sequence[Mapping[str, Any]], audience: Audience) -> dict[str, Any]:
    kept = audience.training.negatives_kept
    days = {"all": class_balance(splits, kept), **class_balances(splits, kept)}
    lines = [{"as-of day": day, **{k: str(v) for k, v in asdict(each).items()}} for day, each in days.items()]
    return {
        "positives": days["all"].positives,
        "base_rate": days["all"].base_rate,
        "by_as_of_day": text_table(lines),
    }


def _own_settings(audience: Audience) -> dict[str, Any]:
    """The keys of the audience's file that decide on its rows."""
    training = audience.training.model_dump(exclude={"max_epochs", "patience", "max_auc_loss"})
    return audience.model_dump(include={"label", "horizon_days", "as_of_days"}) | training


def _count_outside(sizes: Mapping[str, int]) -> Column:
    def outside(name: str, size: int) -> Column:
        return F.size(F.filter(name, lambda token_id: (token_id < 0) | (token_id >= size)))

    return reduce(Column.__add__, [outside(name, size) for name, size in sizes.items()])


def _splits(rows: DataFrame, horizon_days: int) -> pd.DataFrame:
    counts = (
        rows.groupBy("split").agg(F.sum("label").alias("positives"), F.count("*").alias("rows")).toPandas()
    )
    counts = counts.set_index("split").reindex(sorted(SPLIT_NAMES), fill_value=0)
    counts["rarer_class"] = counts["positives"].combine(counts["rows"] - counts["positives"], min)
    splits = rows.groupBy("device_id").agg(F.count_distinct("split").alias("splits"))
    counts["devices_in_two_splits"] = splits.where("splits > 1").count()
    [[newest]] = rows.where(F.col(IN_TIME) == OUT_OF_TIME).agg(F.min("day")).collect()
    later = F.date_add("day", horizon_days) > F.lit(newest)  # null, and so no row, without such a day
    counts["rows_decided_later"] = rows.where(F.col(IN_TIME).isin(TRAIN, VALIDATION) & later).count()
    return counts

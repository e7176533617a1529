"""Every blocking check blocks: one fault planted for each, and what comes next is not made.

A fault is planted where it would come from: in what an asset writes or reads, by a resource that
corrupts it. Everything else is the real thing, and was right when `chain` ran.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.steps.config.audience import FolderDestination
from pipelines.steps.features.encoded_rows import Ragged
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.labels.training_rows import IN_TIME, OUT_OF_TIME, PROMOTION, VALIDATION
from pipelines.steps.promotion.candidate_models import CANDIDATES
from resources.destinations import Delivery, Destinations, Published
from resources.lake import Lake
from resources.model_log import ModelRecord
from resources.model_store import ModelStore
from resources.snapshots import Partition
from tests.small_project import (
    AS_OF_DAYS,
    AUDIENCES,
    SCORED_DAY,
    Chain,
    SmallProject,
    failures,
    materialize,
    materialized,
    verdicts,
)

Override = Callable[[SmallProject], Mapping[str, Any]]
"""The project → the resources that corrupt it."""
Corrupt = Callable[[DataFrame], DataFrame]


@dataclass(frozen=True)
class Fault:
    """One way for an asset to go wrong.

    Attributes:
        name: What is wrong.
        override: Plants it.
    """

    name: str
    override: Override


# --- faults in tables -----------------------------------------------------------------------------


def written(spoiled: str, name: str, corrupt: Corrupt) -> Fault:
    """A lake that corrupts what is written to one table."""

    class CorruptingLake(Lake):
        def write(self, frame: DataFrame, table: str, **how: Any) -> dict[str, Partition]:
            if table != spoiled:
                return super().write(frame, table, **how)
            # As a fault that the lake's own count does not notice: the checks must.
            return super().write(corrupt(frame), table, **how | {"expected_rows": None})

    return Fault(name, lambda project: {"lake": CorruptingLake(root=project.lake.root)})


def made_again(day: date, fault: Fault) -> Fault:
    """A fault in the tokens of a day to train on, which are not there and so are made by the training."""

    def override(project: SmallProject) -> Mapping[str, Any]:
        project.forget("feature_tokens", str(day))
        return fault.override(project)

    return Fault(fault.name, override)


def one_row_lost(frame: DataFrame) -> DataFrame:
    return frame.where(F.col("device_id") != F.lit(frame.agg(F.min("device_id")).head()[0]))  # type: ignore[index]


def no_row(frame: DataFrame) -> DataFrame:
    return frame.limit(0)


def one_row_twice(frame: DataFrame) -> DataFrame:
    return frame.unionByName(frame.orderBy("device_id").limit(1))


def column_is(column: str, value: Any) -> Corrupt:
    return lambda frame: frame.withColumn(column, F.lit(value).cast(frame.schema[column].dataType))


def column_cast(column: str, type_: str) -> Corrupt:
    return lambda frame: frame.withColumn(column, F.col(column).cast(type_))


def first_device_has(column: str, value: Any) -> Corrupt:
    """Spoils the rows of one device only: a check that samples or averages would miss them."""

    def corrupt(frame: DataFrame) -> DataFrame:
        first = frame.agg(F.min("device_id")).head()[0]  # type: ignore[index]
        value_ = F.lit(value).cast(frame.schema[column].dataType)
        return frame.withColumn(column, F.when(F.col("device_id") == first, value_).otherwise(F.col(column)))

    return corrupt


def last_event_a_day_later(frame: DataFrame) -> DataFrame:
    return frame.withColumn("last_event_time", F.col("last_event_time") + F.expr("INTERVAL 1 DAY"))


def seen_at_the_boundary(frame: DataFrame) -> DataFrame:
    """The first microsecond that no feature may know of."""
    return frame.withColumn("last_event_time", F.date_add("day", 1).cast("timestamp"))


def split_by_day(frame: DataFrame) -> DataFrame:
    oldest = frame.agg(F.min("day")).head()[0]  # type: ignore[index]
    return frame.withColumn(
        "split", F.when(F.col("day") == oldest, F.col("split")).otherwise(0).cast("tinyint")
    )


def one_device_out_of_time(frame: DataFrame) -> DataFrame:
    """A rehearsal on all rows but one of the oldest day, as if that were the newest."""
    first = frame.orderBy("day", "device_id").head()
    is_first = (F.col("day") == first["day"]) & (F.col("device_id") == first["device_id"])  # type: ignore[index]
    return frame.withColumn(IN_TIME, F.when(is_first, OUT_OF_TIME).otherwise(F.col("split")).cast("tinyint"))


def no_positive_in(split: int) -> Corrupt:
    def corrupt(frame: DataFrame) -> DataFrame:
        label = F.when(F.col("split") == split, 0).otherwise(F.col("label"))
        return frame.withColumn("label", label.cast("tinyint"))

    return corrupt


def unknown_token_id(frame: DataFrame) -> DataFrame:
    """The first id beyond the vocabulary, where the network has no row of its own."""
    return frame.withColumn("apps", F.transform("apps", lambda token_id: token_id + F.lit(10_000)))


def scores_shifted(frame: DataFrame) -> DataFrame:
    """Shifts scores by less than any plot would show, and a hundred times more than scoring may differ."""
    up = F.col("probability") < 0.5
    shifted = F.col("probability") + F.when(up, 1e-4).otherwise(-1e-4)
    return frame.withColumn("probability", shifted.cast("float"))


# --- faults in vocabularies and models ------------------------------------------------------------


class _GappedField(FieldVocabulary):
    def encode(
        self, column: pa.Array | pa.ChunkedArray, weights: pa.Array | pa.ChunkedArray | None = None
    ) -> Ragged:
        right = super().encode(column, weights)
        return replace(right, values=right.values + (right.values > self.size // 2))


class _FieldWithoutMissing(FieldVocabulary):
    def encode(
        self, column: pa.Array | pa.ChunkedArray, weights: pa.Array | pa.ChunkedArray | None = None
    ) -> Ragged:
        right = super().encode(column, weights)
        return replace(right, values=right.values - 1)


def vocabulary_read(name: str, field_type: type[FieldVocabulary]) -> Fault:
    """A store whose vocabulary encodes in another way than its places say."""

    class CorruptingStore(ModelStore):
        def vocabulary(self, version: str | None = None) -> Vocabulary:
            right = super().vocabulary(version)
            return Vocabulary(
                tuple(field_type(f.name, f.max_length, f.tokens, f.weighted) for f in right.fields)
            )

    return Fault(name, lambda project: {"models": CorruptingStore(root=project.models.root)})


def vocabulary_saved(name: str, corrupt: Callable[[tuple[str, ...]], tuple[str, ...]]) -> Fault:
    """A store that keeps other tokens than were fitted."""

    class CorruptingStore(ModelStore):
        def save_vocabulary(self, vocabulary: Vocabulary) -> None:
            fields = (FieldVocabulary(f.name, f.max_length, corrupt(f.tokens)) for f in vocabulary.fields)
            super().save_vocabulary(Vocabulary(tuple(fields)))

    return Fault(name, lambda project: {"models": CorruptingStore(root=project.models.root)})


def recorded(name: str, model: str, corrupt: Callable[[ModelStore, ModelRecord], ModelRecord]) -> Fault:
    """A store that records something else of one model."""

    class CorruptingStore(ModelStore):
        def record(self, record: ModelRecord) -> ModelRecord:
            return super().record(corrupt(self, record) if record.model == model else record)

    return Fault(name, lambda project: {"models": CorruptingStore(root=project.models.root)})


def metric_is(value: float, metric: str = "auc") -> Callable[[ModelStore, ModelRecord], ModelRecord]:
    def corrupt(_: ModelStore, record: ModelRecord) -> ModelRecord:
        metrics = record.properties["metrics"]
        spoiled = metrics | {"validation": metrics["validation"] | {metric: value}}
        return replace(record, properties={**record.properties, "metrics": spoiled})

    return corrupt


def worst_candidate(store: ModelStore, record: ModelRecord) -> ModelRecord:
    candidates = [store.current(record.audience, name) for name in CANDIDATES]
    worst = min(candidates, key=lambda each: each.properties["metrics"]["validation"]["auc"])
    own = {name: record.properties[name] for name in ("candidates", "choice", "thresholds", "promotion")}
    return replace(worst, model=record.model, properties={**worst.properties, **own})


def promotion_has(**found: Any) -> Callable[[ModelStore, ModelRecord], ModelRecord]:
    def corrupt(_: ModelStore, record: ModelRecord) -> ModelRecord:
        promotion = record.properties["promotion"] | found
        return replace(record, properties={**record.properties, "promotion": promotion})

    return corrupt


def other_vocabulary(_: ModelStore, record: ModelRecord) -> ModelRecord:
    return replace(record, properties={**record.properties, "vocabulary_hash": "0" * 64})


# --- faults in what is delivered ------------------------------------------------------------------


def delivered(name: str, corrupt: Callable[[Path], None]) -> Fault:
    """A destination that spoils the file it has published."""

    class CorruptingDestinations(Destinations):
        def publish(self, delivery: Delivery, destination: FolderDestination) -> Published:
            published = super().publish(delivery, destination)
            place = self.place(delivery.audience, delivery.segment, delivery.day, destination)
            corrupt(place / published.manifest.file)
            return published

    return Fault(name, lambda project: {"destinations": CorruptingDestinations(root=str(project.data_dir))})


def truncate(file: Path) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


def exchange_two_rows(file: Path) -> None:
    header, first, second, *others = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([header, second, first, *others]))


FAULTS: Mapping[str, Sequence[Fault]] = {
    "app_events:ids_and_times_are_present": [
        written("app_events", "times as text", column_cast("event_time", "string")),
        written("app_events", "a null time", first_device_has("event_time", None)),
    ],
    "app_events:every_row_is_accounted_for": [
        written("app_events", "an event lost", one_row_lost),
        written("app_events", "an event made up", one_row_twice),
        written("rejected_events", "a rejected row lost", one_row_lost),
    ],
    "daily_fields:ids_days_and_times_are_present": [
        written("daily_fields", "times as text", column_cast("last_event_time", "string")),
        written("daily_fields", "a null id", first_device_has("device_id", None)),
    ],
    "daily_fields:each_device_has_one_row_a_day": [written("daily_fields", "a device twice", one_row_twice)],
    "daily_fields:last_event_lies_in_its_day": [
        written("daily_fields", "tomorrow's time", last_event_a_day_later)
    ],
    "daily_fields:every_event_is_aggregated": [written("daily_fields", "a device lost", one_row_lost)],
    "daily_signals:ids_and_times_are_present": [
        written("daily_signals", "a null id", first_device_has("device_id", None)),
    ],
    "daily_signals:each_device_has_one_row_a_day": [
        written("daily_signals", "a device twice", one_row_twice)
    ],
    "daily_signals:last_event_lies_in_its_day": [
        written("daily_signals", "tomorrow's time", last_event_a_day_later)
    ],
    "daily_signals:no_event_is_made_up": [
        written("daily_signals", "a million events", first_device_has("events", 1_000_000))
    ],
    "feature_tokens:ids_and_days_are_present": [
        written("feature_tokens", "ids as bytes", column_cast("device_id", "binary")),
        written("feature_tokens", "a null id", first_device_has("device_id", None)),
    ],
    "feature_tokens:each_device_has_one_row_a_day": [
        written("feature_tokens", "a device twice", one_row_twice)
    ],
    "feature_tokens:nothing_comes_after_the_as_of_day": [
        written("feature_tokens", "seen at the boundary", seen_at_the_boundary)
    ],
    "training_days:every_day_passed_its_checks": [
        made_again(AS_OF_DAYS[0], written("feature_tokens", "a device twice", one_row_twice))
    ],
    "feature_vocabulary:ids_have_no_gaps": [vocabulary_read("a gap", _GappedField)],
    "feature_vocabulary:reserved_ids_stay_free": [
        vocabulary_read("one reserved id too few", _FieldWithoutMissing)
    ],
    "feature_vocabulary:each_token_has_one_id": [
        vocabulary_saved("a token twice", lambda tokens: (*tokens, tokens[0])),
    ],
    "feature_vocabulary:there_is_a_token": [vocabulary_saved("no token", lambda _: ())],
    "training_set:labels_and_splits_are_known": [
        written("training_set", "label 2", first_device_has("label", 2)),
        written("training_set", "a fifth split", first_device_has("split", 4)),
    ],
    "training_set:each_device_has_one_row_a_day": [written("training_set", "a row twice", one_row_twice)],
    "training_set:every_id_is_in_the_vocabulary": [
        written("training_set", "an id outside", unknown_token_id)
    ],
    "training_set:every_split_has_both_classes": [
        written("training_set", "no positive in validation", no_positive_in(VALIDATION)),
        written("training_set", "no positive to decide a promotion", no_positive_in(PROMOTION)),
    ],
    "training_set:no_device_is_in_two_splits": [written("training_set", "split by day", split_by_day)],
    "training_set:nothing_rehearsed_on_is_decided_after_the_out_of_time_day": [
        written("training_set", "a row of the oldest day set aside", one_device_out_of_time)
    ],
    **{
        f"{name}_model:metrics_are_finite": [
            recorded("AUC is NaN", name, metric_is(float("nan"))),
            *(
                [recorded("log-loss is infinite", name, metric_is(float("inf"), "log_loss"))]
                if name == "logistic"
                else []
            ),
        ]
        for name in CANDIDATES
    },
    "champion_model:is_the_best_candidate_or_the_blend_of_its_equals": [
        recorded("the worst candidate", "challenger", worst_candidate)
    ],
    "champion_model:is_not_worse_than_the_former": [
        recorded("worse than the former", "challenger", promotion_has(auc_behind=0.02, max_auc_loss=0.01))
    ],
    "champion_model:is_better_than_chance_on_promotion_rows": [
        recorded("chance within the interval", "challenger", promotion_has(auc_low=0.5)),
        recorded("an AUC that was never measured", "challenger", promotion_has(auc_low=None)),
        recorded("too few devices", "challenger", promotion_has(rarer_devices=1)),
    ],
    "champion_model:its_bundle_loads_with_its_vocabulary": [
        recorded("another vocabulary", "champion", other_vocabulary)
    ],
    "predictions:every_probability_is_in_0_to_1": [
        written("predictions", "a NaN", first_device_has("probability", float("nan"))),
        written("predictions", "an infinity", first_device_has("probability", float("inf"))),
        written("predictions", "1.5", first_device_has("probability", 1.5)),
        written("predictions", "a null", first_device_has("probability", None)),
        written("predictions", "double precision", column_cast("probability", "double")),
    ],
    "predictions:each_device_is_scored_once_a_day": [written("predictions", "a device twice", one_row_twice)],
    "predictions:every_device_is_scored": [written("predictions", "a device lost", one_row_lost)],
    "predictions:there_is_a_device_to_score": [written("predictions", "no device", no_row)],
    "predictions:scores_equal_pytorch_in_process": [
        written("predictions", "scores 1e-4 off", scores_shifted)
    ],
    "segments:every_probability_is_in_0_to_1": [
        written("segments", "a null", first_device_has("probability", None)),
        written("segments", "-0.1", first_device_has("probability", -0.1)),
    ],
    "segments:no_device_is_twice_in_a_segment": [written("segments", "a member twice", one_row_twice)],
    "deliveries:delivered_rows_equal_the_manifest": [delivered("a row cut off", truncate)],
    "deliveries:delivered_content_equals_the_manifest": [delivered("two rows exchanged", exchange_two_rows)],
}
"""Blocking check, without its audience → faults that it must find."""

DOWNSTREAM = {
    "app_events": "daily_fields",
    "daily_fields": "feature_tokens",
    "daily_signals": None,
    "feature_tokens": "car_buyers/predictions",
    "training_days": "feature_vocabulary",
    "feature_vocabulary": "car_buyers/training_set",
    "training_set": "car_buyers/logistic_model",
    **{f"{name}_model": "car_buyers/champion_model" for name in CANDIDATES},
    "champion_model": "car_buyers/predictions",
    "predictions": "car_buyers/segments",
    "segments": "car_buyers/deliveries",
    "deliveries": None,
}
"""Asset → one that is made from it, if any."""
SHARED = {"app_events", "daily_fields", "feature_tokens", "training_days", "feature_vocabulary"}
PARTITIONED = {"app_events", "daily_fields", "daily_signals", "feature_tokens"}
PARTITIONED |= {"predictions", "segments", "deliveries"}


def blocking_checks(definitions: dg.Definitions) -> list[dg.AssetCheckSpec]:
    checks = definitions.resolve_asset_graph().asset_check_keys
    nodes = (definitions.resolve_asset_graph().get_check_spec(key) for key in checks)
    return [spec for spec in nodes if spec.blocking]


def table_of(key: dg.AssetKey) -> str:
    return "daily_signals" if key.path[0] == "signals" else key.path[-1]


def test_every_blocking_check_has_a_fault(chain: Chain) -> None:
    specs = blocking_checks(chain.project.definitions())

    checks = {f"{table_of(spec.asset_key)}:{spec.name}" for spec in specs}

    assert checks == set(FAULTS)


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        pytest.param(check, fault, id=f"{check}: {fault.name}")
        for check, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_a_fault_stops_what_is_made_from_it(chain: Chain, tmp_path: Path, check: str, fault: Fault) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    name = check.split(":")[0]
    asset, downstream = name if name in SHARED else f"car_buyers/{name}", DOWNSTREAM[name]
    asset = "signals/car_pages" if name == "daily_signals" else asset
    selection = [asset, *([downstream] if downstream else [])]

    with chain.history(tmp_path / "home") as instance:
        day = SCORED_DAY if {name, (downstream or "").split("/")[-1]} & PARTITIONED else None
        result = materialize(project.definitions(**fault.override(project)), instance, selection, day)

    found = verdicts(result)
    assert found.get(f"{asset}:{check.split(':')[1]}") is False, f"{found}\n{failures(result)}"
    assert asset in materialized(result)
    assert downstream not in materialized(result)
    assert not result.success


# --- what the parity check reports --------------------------------------------------------------------


@pytest.mark.parametrize("audience", AUDIENCES)
def test_parity_reports_the_distribution_of_differences(chain: Chain, audience: str) -> None:
    evaluations = chain.results["daily_job"].get_asset_check_evaluations()
    parity = next(
        e
        for e in evaluations
        if e.asset_key.path[0] == audience and e.check_name == "scores_equal_pytorch_in_process"
    )

    reported: dict[str, Any] = {name: value.value for name, value in parity.metadata.items()}

    distribution = {"count", "mean", "std", "p25", "p50", "p75", "p99", "max"}
    assert set(reported) == {*distribution, "threshold", "version"}
    assert reported["count"] == chain.project.lake.partition("feature_tokens", str(SCORED_DAY)).rows
    assert 0 <= reported["p25"] <= reported["p50"] <= reported["p75"] <= reported["p99"] <= reported["max"]
    assert reported["max"] <= reported["threshold"] == 1e-6

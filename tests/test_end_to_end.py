"""The whole chain on the small project: what comes out is what its events say."""

import csv
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pipelines.demo import RUN_TAG, _close_killed_runs
from pipelines.steps.config.behaviour_names import is_behaviour
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import (
    PROMOTION,
    TEST,
    TRAIN,
    VALIDATION,
    TrainingFiles,
    TrainingRows,
)
from pipelines.steps.labels.training_set import PromotionBlock
from pipelines.steps.models.bundle import TrainedModel
from pipelines.steps.models.logistic_model import LogisticConfig, train_logistic
from pipelines.steps.models.model_columns import ordinal_columns
from pipelines.steps.models.ranking import measure
from pipelines.steps.models.xgboost_model import XGBoostConfig, train_xgboost
from pipelines.steps.promotion.candidate_models import (
    CANDIDATES,
    HELD_OUT_FILE,
    Candidate,
    Scores,
    measure_candidate,
    write_candidate,
)
from pipelines.steps.promotion.champion_model import Choice
from resources.lake import Lake
from resources.snapshots import Snapshot
from tests.small_project import (
    AS_OF_DAYS,
    AUDIENCES,
    FIRST_DAY,
    HORIZON_DAYS,
    LAST_DAY,
    SCORED_DAY,
    WINDOW_DAYS,
    Chain,
    SmallProject,
    day_keys,
    failures,
    materialize,
    materialized,
    verdicts,
)

PRODUCTS = {"car_buyers": ["car"], "bike_buyers": ["bike", "e-bike"]}
SEGMENTS = {"car_buyers": ("top_fifth", "best_30"), "bike_buyers": ("best_25",)}


def seen_devices(project: SmallProject, as_of: date) -> set[str]:
    """Devices with an accepted event in the window of a day."""
    days = project.accepted["day"]
    return set(
        project.accepted.loc[(days > as_of - timedelta(days=WINDOW_DAYS)) & (days <= as_of), "device_id"]
    )


def buyers(project: SmallProject, audience: str, as_of: date) -> set[str]:
    """Devices with a conversion in the horizon after a day."""
    events = project.accepted
    horizon = (events["day"] > as_of) & (events["day"] <= as_of + timedelta(days=HORIZON_DAYS))
    return set(events.loc[horizon & events["product"].isin(PRODUCTS[audience]), "device_id"])


def place(project: SmallProject, audience: str, segment: str) -> Path:
    return project.data_dir / "deliveries" / audience / segment / str(SCORED_DAY)


def delivered(project: SmallProject, audience: str, segment: str) -> pd.DataFrame:
    """The rows of a delivered file, read as its receiver would."""
    [file] = place(project, audience, segment).glob("devices-*")
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    with file.open(newline="") as stream:
        rows = pd.DataFrame(csv.DictReader(stream))
    return rows.astype({"probability": "float32"})


def test_every_run_succeeds(chain: Chain) -> None:
    assert {job: failures(result) for job, result in chain.results.items() if not result.success} == {}


def test_every_asset_is_materialized(chain: Chain) -> None:
    graph = chain.project.definitions().resolve_asset_graph()

    made = set().union(*[materialized(result) for result in chain.results.values()])

    assert made == {key.to_user_string() for key in graph.get_all_asset_keys()}


def test_every_check_is_evaluated_and_passes(chain: Chain) -> None:
    graph = chain.project.definitions().resolve_asset_graph()
    expected = {f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys}

    found = [verdicts(result) for result in chain.results.values()]

    assert set().union(*found) == expected
    assert [check for each in found for check, passed in each.items() if not passed] == []


def test_every_raw_row_is_accepted_a_duplicate_or_rejected(spark: SparkSession, chain: Chain) -> None:
    project, days = chain.project, day_keys(FIRST_DAY, LAST_DAY)

    accepted = project.rows(spark, "app_events", days)
    rejected = project.rows(spark, "rejected_events", days)

    key = ["device_id", "event_time"]
    expected = project.accepted[[*key, "day"]].assign(
        event_time=project.accepted["event_time"].dt.tz_localize(None)
    )
    found = accepted[[*key, "day"]].sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(found, expected.sort_values(key, ignore_index=True), check_dtype=False)
    assert (accepted["copies"] - 1).sum() == project.duplicates
    assert rejected["rejected_because"].value_counts().to_dict() == project.rejected
    assert accepted["copies"].sum() + len(rejected) == project.raw_rows


def made(chain: Chain) -> dict[str, list[dg.AssetMaterialization]]:
    """Asset, named like "car_buyers/segments" → its materializations, oldest first."""
    found: dict[str, list[dg.AssetMaterialization]] = {}
    for result in chain.results.values():
        for event in result.get_asset_materialization_events():
            name = event.materialization.asset_key.to_user_string()
            found.setdefault(name, []).append(event.materialization)
    return found


def test_no_metadata_holds_a_device_id(chain: Chain) -> None:
    texts = [
        repr(value)
        for materializations in made(chain).values()
        for each in materializations
        for value in each.metadata.values()
    ]
    ids = set(chain.project.accepted["device_id"])

    assert all(device.endswith("-feed") for device in ids)
    assert [text for text in texts if "-feed" in text.lower()] == []


def records_of(chain: Chain, name: str) -> list[dg.TableRecord]:
    value = made(chain)[name][-1].metadata["sample"]
    assert isinstance(value, dg.TableMetadataValue)
    return list(value.records)


def test_every_table_shows_a_sample_of_its_newest_day(chain: Chain) -> None:
    for name in [
        *("app_events", "daily_fields", "feature_tokens"),
        *("car_buyers/training_set", "car_buyers/predictions", "car_buyers/segments"),
    ]:
        records = records_of(chain, name)
        assert len(records) == 5
        assert all(str(record.data["device_id"]).startswith("device ") for record in records)
    apps = [str(record.data["apps"]) for record in records_of(chain, "feature_tokens")]
    assert any("com." in tokens for tokens in apps)


def test_the_columns_that_a_table_is_said_to_have_are_those_that_were_stored(chain: Chain) -> None:
    graph = chain.project.definitions().resolve_asset_graph()
    for name, materializations in made(chain).items():
        stored = materializations[-1].metadata.get("dagster/column_schema")
        if stored is None:
            continue
        assert isinstance(stored, dg.TableSchemaMetadataValue)
        said = graph.get(dg.AssetKey(name.split("/"))).metadata["dagster/column_schema"].columns
        found = [(column.name, column.type) for column in stored.schema.columns]
        known = [(column.name, column.type) for column in said]
        # Raw columns are beside ours, as the files of the day have them.
        assert set(known) <= set(found), name
        assert name == "app_events" or sorted(found) == sorted(known), name


@pytest.mark.parametrize("audience", AUDIENCES)
def test_the_training_set_says_how_rare_conversions_are(
    spark: SparkSession, chain: Chain, audience: str
) -> None:
    labels = chain.project.rows(spark, "training_set", [audience])["label"]

    [found] = made(chain)[f"{audience}/training_set"]

    assert found.metadata["positives"].value == labels.sum()
    assert found.metadata["base_rate"].value == pytest.approx(labels.mean())
    by_day = found.metadata["by_as_of_day"]
    assert isinstance(by_day, dg.TableMetadataValue)
    records = by_day.records
    assert [record.data["as-of day"] for record in records] == ["all", *map(str, AS_OF_DAYS)]
    assert sum(int(str(record.data["positives"])) for record in records[1:]) == labels.sum()


@pytest.mark.parametrize("audience", AUDIENCES)
def test_the_training_set_has_every_device_of_the_window_and_its_outcome(
    spark: SparkSession, chain: Chain, audience: str
) -> None:
    rows = chain.project.rows(spark, "training_set", [audience])

    found = set(rows[["device_id", "day", "label"]].itertuples(index=False, name=None))

    assert found == {
        (device, as_of, int(device in buyers(chain.project, audience, as_of)))
        for as_of in AS_OF_DAYS
        for device in seen_devices(chain.project, as_of)
    }
    assert len(found) == len(rows)
    assert set(rows["split"]) == {TRAIN, VALIDATION, TEST, PROMOTION}


@pytest.mark.parametrize("audience", AUDIENCES)
def test_predictions_score_every_device_of_the_window_once(
    spark: SparkSession, chain: Chain, audience: str
) -> None:
    rows = chain.project.rows(spark, "predictions", [f"{audience}/{SCORED_DAY}"])

    assert sorted(rows["device_id"]) == sorted(seen_devices(chain.project, SCORED_DAY))
    assert rows["probability"].between(0, 1).all()
    assert rows["probability"].nunique() > 5  # the model tells devices apart


def test_both_audiences_are_scored_in_one_step(chain: Chain) -> None:
    result = chain.results["daily_job"]

    steps = {
        e.step_key
        for e in result.get_asset_materialization_events()
        if e.asset_key and e.asset_key.path[-1] == "predictions"
    }

    versions = {chain.project.lake.partition("predictions", f"{a}/{SCORED_DAY}").version for a in AUDIENCES}
    assert steps == {"predictions"}
    assert len(versions) == 1


@pytest.mark.parametrize("audience", AUDIENCES)
def test_models_learn_what_the_tokens_say(chain: Chain, audience: str) -> None:
    """Every second device likes cars, every third one bikes, and their apps tell."""
    champion = chain.project.models.current(audience, "champion")
    choice = Choice.from_dict(champion.properties["choice"])

    serving = chain.project.models.current(audience, choice.name)

    assert champion.version == serving.version
    assert choice.figures[choice.best] == max(choice.figures.values())
    assert set(choice.figures) == set(CANDIDATES)
    assert champion.properties["metrics"]["validation"]["auc"] > 0.65
    promotion = champion.properties["promotion"]
    assert promotion["auc_low"] > 0.5
    assert (promotion["accepted"], promotion["former"], promotion["auc_behind"]) == (True, None, 0.0)
    assert PromotionBlock.of(champion.properties) == PromotionBlock(0.2)


def test_each_behaviour_reaches_the_network_by_itself(chain: Chain) -> None:
    models = chain.project.models
    manifest = models.load("car_buyers", "dnn", models.current("car_buyers", "dnn").version).manifest
    telling = [field.name for field in manifest.fields if is_behaviour(field.name)]
    assert manifest.architecture["multi_hot_fields"] == len(telling) > 1
    assert [field.name for field in manifest.fields[-len(telling) :]] == telling


@pytest.mark.parametrize("audience", AUDIENCES)
def test_every_candidate_has_a_card(chain: Chain, audience: str) -> None:
    models = chain.project.models
    for name in [*CANDIDATES, "champion"]:
        record = models.current(audience, name)
        card = models.card(record)
        assert record.version in (card / "card.md").read_text()
        assert (card / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_segments_hold_the_most_probable_devices(spark: SparkSession, chain: Chain) -> None:
    key = [f"car_buyers/{SCORED_DAY}"]
    segments = chain.project.rows(spark, "segments", key)
    ranked = chain.project.rows(spark, "predictions", key).sort_values(
        ["probability", "device_id"], ascending=[False, True]
    )
    sizes = {"top_fifth": math.ceil(0.2 * len(ranked)), "best_30": 30}

    members = {name: set(rows["device_id"]) for name, rows in segments.groupby("segment")}

    assert members == {name: set(ranked["device_id"].head(size)) for name, size in sizes.items()}


@pytest.mark.parametrize(("audience", "segment"), [(a, s) for a, names in SEGMENTS.items() for s in names])
def test_delivered_files_equal_the_segments(
    spark: SparkSession, chain: Chain, audience: str, segment: str
) -> None:
    rows = chain.project.rows(spark, "segments", [f"{audience}/{SCORED_DAY}"])
    expected = rows.loc[rows["segment"] == segment, ["device_id", "probability"]].sort_values("device_id")

    found = delivered(chain.project, audience, segment)

    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_exact=True)


def test_each_audience_delivers_what_its_file_asks_for(chain: Chain) -> None:
    deliveries = chain.project.data_dir / "deliveries"

    found = {path.parent.relative_to(deliveries).as_posix() for path in deliveries.rglob("manifest.json")}

    assert found == {f"{a}/{segment}/{SCORED_DAY}" for a, names in SEGMENTS.items() for segment in names}


def test_running_a_day_again_sends_nothing_new(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    files = sorted((project.data_dir / "deliveries").rglob("*.*"))
    before = [(file, file.stat().st_mtime_ns, file.read_bytes()) for file in files]

    again = [
        f"{audience}/{name}" for name in ("predictions", "segments", "deliveries") for audience in AUDIENCES
    ]
    with chain.history(tmp_path / "home") as instance:
        result = materialize(project.definitions(), instance, again, SCORED_DAY)

    sent = [
        materialization.metadata["rows_sent"].value
        for audience in AUDIENCES
        for materialization in result.asset_materializations_for_node(f"{audience}__deliveries")
    ]
    assert result.success, failures(result)
    assert sent == [0, 0]
    files = sorted((project.data_dir / "deliveries").rglob("*.*"))
    assert [(file, file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before


def test_training_again_on_the_same_rows_makes_the_same_models(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    names = ["training_set", *[f"{name}_model" for name in CANDIDATES], "champion_model"]

    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(project.definitions(), instance, [f"car_buyers/{name}" for name in names])

    assert result.success, failures(result)
    versions = {
        name: project.models.current("car_buyers", name).version for name in [*CANDIDATES, "champion"]
    }
    assert versions == {name: chain.project.models.current("car_buyers", name).version for name in versions}


def _bundled(directory: Path, model: TrainedModel, vocabulary: Vocabulary, rows: TrainingRows) -> Candidate:
    candidate = measure_candidate(model, vocabulary, rows)
    write_candidate(directory, candidate, vocabulary, [])
    return candidate


def training_rows(project: SmallProject) -> tuple[TrainingRows, Vocabulary]:
    partition = project.lake.partition("training_set", "car_buyers")
    vocabulary = project.models.vocabulary(partition.properties["vocabulary_hash"])
    files = project.lake.files("training_set", ["car_buyers"])
    return TrainingFiles(files, list(vocabulary.sizes)).read(), vocabulary


def test_a_worse_champion_does_not_replace_the_former(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    models, (rows, vocabulary) = project.models, training_rows(project)
    # As a champion from before devices were kept for promotion: trained on them, it ranks them best.
    kept = rows.subset(PROMOTION)
    seen = [TrainingRows(kept.labels, np.full_like(kept.split, s), kept.bags) for s in (TRAIN, VALIDATION)]
    config = XGBoostConfig(
        num_boost_round=100, patience=100, min_child_weight=0.1, colsample_bytree=1.0, subsample=1.0
    )
    columns = ordinal_columns(vocabulary.fields)
    seer = train_xgboost(TrainingRows.concatenated(seen), vocabulary.sizes, config, columns)
    served = models.current("car_buyers", "champion").properties

    def write(directory: Path) -> Mapping[str, Any]:
        measured = _bundled(directory, seer, vocabulary, rows).measured
        known_then = {name: value for name, value in served.items() if name != "promotion_block"}
        return {**known_then, "metrics": measured.to_dict()}

    former = models.add("car_buyers", "champion", write)
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(project.definitions(), instance, ["car_buyers/champion_model"])

    challenger = models.current("car_buyers", "challenger")
    promotion = challenger.properties["promotion"]
    assert models.current("car_buyers", "champion").version == former.version != challenger.version
    assert (promotion["accepted"], promotion["former"]) == (False, former.version)
    found = verdicts(result)
    assert not found["car_buyers/champion_model:is_not_worse_than_the_former"]
    assert found["car_buyers/champion_model:is_better_than_chance_on_promotion_rows"]
    assert promotion["former_may_have_seen_rows"]
    assert "the former may have been trained on these devices" in promotion["reason"]
    assert promotion["reason"] in (models.card(challenger) / "card.md").read_text()


def learn_the_contrary(project: SmallProject) -> None:
    """Candidates that rank devices worse than chance, as few rows full of noise may make them."""
    models, (rows, vocabulary) = project.models, training_rows(project)
    contrary = train_logistic(
        TrainingRows(1 - rows.labels, rows.split, rows.bags), vocabulary.sizes, LogisticConfig()
    )

    def write(directory: Path) -> Mapping[str, Any]:
        candidate = _bundled(directory, contrary, vocabulary, rows)
        held_out.append(candidate.scores)
        return {**known, "metrics": candidate.measured.to_dict()}

    held_out: list[Scores] = []
    for name in CANDIDATES:
        known = models.current("car_buyers", name).properties
        record = models.add("car_buyers", name, write)
        models.save_card(record, {HELD_OUT_FILE: held_out[-1].to_bytes()})


def test_a_first_champion_no_better_than_chance_is_not_promoted(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    shutil.rmtree(project.data_dir / "models/log/car_buyers/champion")
    learn_the_contrary(project)
    with dg.DagsterInstance.ephemeral() as instance:
        chosen = materialize(project.definitions(), instance, ["car_buyers/champion_model"])
        scored = materialize(project.definitions(), instance, ["car_buyers/predictions"], SCORED_DAY)

    reason = project.models.current("car_buyers", "challenger").properties["promotion"]["reason"]
    assert "champion" not in project.models.models("car_buyers")
    assert not chosen.success
    assert not verdicts(chosen)["car_buyers/champion_model:is_better_than_chance_on_promotion_rows"]
    [made] = chosen.asset_materializations_for_node("car_buyers__champion_model")
    assert (made.metadata["serves"].value, made.metadata["reason"].value) == (False, reason)
    assert "car_buyers has no champion: no model trained so far was good enough to serve" in failures(scored)
    assert reason in failures(scored)


def test_a_challenger_no_better_than_chance_leaves_the_former_champion_serving(
    chain: Chain, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    former = project.models.current("car_buyers", "champion")
    learn_the_contrary(project)
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(
            project.definitions(),
            instance,
            ["car_buyers/champion_model", "car_buyers/predictions"],
            SCORED_DAY,
        )

    assert not verdicts(result)["car_buyers/champion_model:is_better_than_chance_on_promotion_rows"]
    assert materialized(result) == {"car_buyers/champion_model"}
    assert project.models.current("car_buyers", "champion") == former


def test_a_former_champion_of_a_former_format_counts_as_none(chain: Chain, tmp_path: Path) -> None:
    """What serves must be trained anew; until it is, the checks say so."""
    project = chain.project.copied_to(tmp_path / "data")
    models, (rows, vocabulary) = project.models, training_rows(project)
    logistic = train_logistic(rows, vocabulary.sizes, LogisticConfig(C=(0.1,)))
    known = models.current("car_buyers", "champion").properties

    def write(directory: Path) -> Mapping[str, Any]:
        measured = _bundled(directory, logistic, vocabulary, rows).measured
        manifest = directory / "bundle.json"
        manifest.write_text(manifest.read_text().replace('"format_version": 3', '"format_version": 2'))
        return {**known, "metrics": measured.to_dict()}

    former = models.add("car_buyers", "champion", write)
    learn_the_contrary(project)
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(project.definitions(), instance, ["car_buyers/champion_model"])

    promotion = models.current("car_buyers", "challenger").properties["promotion"]
    assert (promotion["former"], promotion["auc_behind"], promotion["gain_low"]) == (
        former.version,
        0.0,
        None,
    )
    assert not verdicts(result)["car_buyers/champion_model:its_bundle_loads_with_its_vocabulary"]
    [told] = [
        e
        for e in result.get_asset_check_evaluations()
        if e.check_name == "its_bundle_loads_with_its_vocabulary"
    ]
    assert "unknown format version" in str(told.metadata)
    assert "train once" in str(told.metadata)


def test_what_the_promotion_rows_say_changes_no_candidate(chain: Chain, tmp_path: Path) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    [file] = project.lake.files("training_set", ["car_buyers"])
    table = pq.read_table(file)
    label, split = (table.column(name).to_numpy() for name in ("label", "split"))
    contrary = np.where(split == PROMOTION, 1 - label, label).astype(np.int8)
    place = table.column_names.index("label")
    pq.write_table(table.set_column(place, "label", pa.array(contrary)), file)

    with dg.DagsterInstance.ephemeral() as instance:
        assets = [f"car_buyers/{name}_model" for name in CANDIDATES]
        result = materialize(project.definitions(), instance, assets)

    assert result.success, failures(result)
    assert (contrary != label).any()
    for name in CANDIDATES:
        known = chain.project.models.current("car_buyers", name)
        assert project.models.current("car_buyers", name).version == known.version


def test_what_serves_has_learned_from_the_rows_that_measured_it(chain: Chain) -> None:
    """Its card holds what the same model gave them before."""
    models, (rows, _) = chain.project.models, training_rows(chain.project)
    for name in CANDIDATES:
        record = models.current("car_buyers", name)
        held_out = Scores.from_bytes((models.card(record) / HELD_OUT_FILE).read_bytes())
        serving = Scores.of(models.load("car_buyers", name, record.version), rows)
        for split, before, after in (
            (VALIDATION, held_out.validation, serving.validation),
            (TEST, held_out.test, serving.test),
        ):
            labels = rows.subset(split).labels
            assert measure("auc", labels, after) > measure("auc", labels, before), (name, split)
        assert record.properties["metrics"]["test"]["auc"] == pytest.approx(
            measure("auc", rows.subset(TEST).labels, held_out.test)
        )


def test_a_candidate_without_scores_of_rows_held_out_is_trained_again_first(
    chain: Chain, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    (project.models.card(project.models.current("car_buyers", "dnn")) / HELD_OUT_FILE).unlink()
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(project.definitions(), instance, ["car_buyers/champion_model"])

    assert "it is not known how dnn ranks the validation devices" in failures(result)
    assert "run the training job, which trains all of them" in failures(result)


def test_a_training_set_that_keeps_no_devices_for_promotion_is_made_again_first(
    chain: Chain, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    pointer = project.data_dir / "lake/training_set/partitions/car_buyers.json"
    plain = json.loads(pointer.read_text())
    del plain["properties"]["promotion_block"]
    pointer.write_text(json.dumps(plain))
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(project.definitions(), instance, ["car_buyers/champion_model"])

    assert "the training set of car_buyers keeps no devices for promotion" in failures(result)
    assert "run the training job, which makes it again" in failures(result)


@pytest.mark.parametrize(
    ("asset", "model"), [("logistic_model", "logistic"), ("champion_model", "challenger")]
)
def test_a_bundle_names_the_training_set_that_it_read_though_another_run_replaces_it(
    chain: Chain, tmp_path: Path, asset: str, model: str
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    pointer = project.data_dir / "lake/training_set/partitions/car_buyers.json"
    read = project.lake.partition("training_set", "car_buyers").version

    class BusyLake(Lake):
        def snapshot(self, table: str, keys: Iterable[str]) -> Snapshot:
            found = super().snapshot(table, keys)
            if table == "training_set":
                pointer.write_text(json.dumps(json.loads(pointer.read_text()) | {"version": "another"}))
            return found

    with dg.DagsterInstance.ephemeral() as instance:
        definitions = project.definitions(lake=BusyLake(root=project.lake.root))
        result = materialize(definitions, instance, [f"car_buyers/{asset}"])

    assert result.success, failures(result)
    assert project.lake.partition("training_set", "car_buyers").version == "another"
    assert project.models.current("car_buyers", model).properties["training_set"] == read


def test_the_next_demo_closes_the_run_of_a_killed_one(chain: Chain) -> None:
    job = chain.project.definitions().resolve_job_def("training_job")
    with dg.DagsterInstance.ephemeral() as instance:
        started = dg.DagsterRunStatus.STARTED
        killed = instance.create_run_for_job(job, status=started, tags={RUN_TAG: "true"})
        someone_elses = instance.create_run_for_job(job, status=started)

        _close_killed_runs(instance)

        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {killed.run_id: dg.DagsterRunStatus.CANCELED, someone_elses.run_id: started}

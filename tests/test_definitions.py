"""What is bound: the assets and their edges, one backfill policy, checks, and errors before any JVM."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest
from pyspark.sql import SparkSession

from pipelines.definitions import build_definitions
from pipelines.steps.config.settings import JOBS
from pipelines.steps.errors import ConfigError
from resources.spark import Spark
from tests.small_project import (
    AUDIENCES,
    FIRST_DAY,
    LAST_DAY,
    SCORED_DAY,
    SIGNALS,
    SmallProject,
    failures,
    materialize,
    materialized,
    write_small_project,
)

ROOT = Path(__file__).parent.parent
SHARED_EDGES = {
    "app_events": set(),
    "daily_fields": {"app_events"},
    **{f"signals/{name}": {"app_events"} for name in SIGNALS},
    "feature_tokens": {"daily_fields", *(f"signals/{name}" for name in SIGNALS)},
    # Labels come from the events, so the days known are told by them.
    "training_days": {"daily_fields", "app_events", *(f"signals/{name}" for name in SIGNALS)},
    "feature_vocabulary": {"training_days", "feature_tokens", "app_events"},
}
OWN_EDGES = {
    "training_set": {"feature_tokens", "feature_vocabulary", "app_events"},
    "dnn_model": {"{}/training_set"},
    "xgboost_model": {"{}/training_set"},
    "logistic_model": {"{}/training_set"},
    "champion_model": {"{}/dnn_model", "{}/xgboost_model", "{}/logistic_model"},
    "predictions": {"feature_tokens", "{}/champion_model"},
    "segments": {"{}/predictions"},
    "deliveries": {"{}/segments"},
}
DAILY = {"app_events", "daily_fields", "feature_tokens", "predictions", "segments", "deliveries"}


class SparkThatMustNotStart(Spark):
    """Any use of the session is a failure of the test."""

    @property
    def session(self) -> SparkSession:
        raise AssertionError("the JVM was started")


@pytest.fixture
def project(tmp_path: Path) -> SmallProject:
    return write_small_project(tmp_path)


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    return write_small_project(tmp_path_factory.mktemp("definitions")).definitions()


def test_spark_settings_come_from_the_environment(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_CONF", "spark.sql.shuffle.partitions=512")
    bound = build_definitions(project.audiences_dir, project.data_dir).resources or {}
    assert bound["spark"].conf == {"spark.sql.shuffle.partitions": "512"}


def edges(definitions: dg.Definitions) -> Mapping[str, set[str]]:
    graph = definitions.resolve_asset_graph()
    return {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} is not once in {file.name}"
    file.write_text(text.replace(old, new))


def test_the_chain_is_the_one_designed(definitions: dg.Definitions) -> None:
    own = {
        f"{audience}/{name}": {parent.format(audience) for parent in parents}
        for audience in AUDIENCES
        for name, parents in OWN_EDGES.items()
    }

    assert edges(definitions) == SHARED_EDGES | own


def test_daily_assets_share_partitions_and_backfill_policy(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    names = {key for key in graph.get_all_asset_keys() if key.path[-1] in DAILY or key.path[0] == "signals"}
    daily = [graph.get(key) for key in names]
    others = [graph.get(key) for key in graph.get_all_asset_keys() - names]

    assert len(daily) == 3 + len(SIGNALS) + 3 * len(AUDIENCES)
    assert len({node.backfill_policy for node in daily}) == 1
    assert daily[0].backfill_policy == dg.BackfillPolicy.single_run()
    assert len({node.partitions_def for node in daily}) == 1
    partitions = daily[0].partitions_def
    assert partitions is not None
    assert (partitions.get_first_partition_key(), partitions.get_last_partition_key()) == (
        str(FIRST_DAY),
        str(LAST_DAY),
    )
    assert all(node.partitions_def is None for node in others)


@pytest.mark.parametrize("table", ["daily_fields", "signals/bike_buyers"])
def test_a_day_of_features_depends_on_all_days_before(definitions: dg.Definitions, table: str) -> None:
    graph = definitions.resolve_asset_graph()
    mapping = graph.get_partition_mapping(dg.AssetKey("feature_tokens"), dg.AssetKey(table.split("/")))
    days = graph.get(dg.AssetKey("feature_tokens")).partitions_def
    assert days is not None

    def upstream(day: str) -> list[str]:
        subset = days.empty_subset().with_partition_keys([day])
        result = mapping.get_upstream_mapped_partitions_result_for_partitions(subset, days, days)
        return sorted(result.partitions_subset.get_partition_keys())

    assert upstream("2025-03-10") == [f"2025-03-{day:02}" for day in range(1, 11)]
    assert upstream("2025-03-01") == ["2025-03-01"]


def test_every_asset_has_a_blocking_check(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    guarded = {key.asset_key for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}

    assert guarded == set(graph.get_all_asset_keys())


def test_jobs_hold_the_assets_of_every_audience(definitions: dg.Definitions) -> None:
    def assets(job: str) -> set[str]:
        selected = definitions.resolve_job_def(job).asset_layer.selected_asset_keys
        return {key.to_user_string() for key in selected}

    def own(*names: str) -> set[str]:
        return {f"{audience}/{name}" for audience in AUDIENCES for name in names}

    ingested = {"app_events", "daily_fields", *(f"signals/{name}" for name in SIGNALS)}
    assert assets("ingestion_job") == ingested
    assert assets("features_job") == {"feature_tokens"}
    assert assets("daily_job") == ingested | {"feature_tokens"} | own("predictions", "segments", "deliveries")
    assert assets("training_job") == {"training_days", "feature_vocabulary"} | own(*OWN_EDGES.keys() - DAILY)


def test_the_job_named_as_a_remedy_makes_the_table(definitions: dg.Definitions) -> None:
    for table, job in JOBS.items():
        made = definitions.resolve_job_def(job).asset_layer.selected_asset_keys
        # What app_events rejects is kept in a table of its own.
        assert {"rejected_events": "app_events"}.get(table, table) in {key.path[-1] for key in made}


def test_adding_an_audience_is_adding_a_file(project: SmallProject) -> None:
    before = edges(project.definitions())
    text = (project.audiences_dir / "car_buyers.yaml").read_text()

    (project.audiences_dir / "boat_buyers.yaml").write_text(text.replace("product: car", "product: boat"))

    added = edges(project.definitions()).keys() - before.keys()
    assert added == {"signals/boat_buyers", *(f"boat_buyers/{name}" for name in OWN_EDGES)}


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("fields.yaml", "window_days", "windowdays", "windowdays"),
        ("fields.yaml", "kind: multi", "kind: many", "fields.apps.kind"),
        ("car_buyers.yaml", "horizon_days: 3", "horizon_days: 0", "horizon_days"),
        ("car_buyers.yaml", "size: 30", "size: 30, top_fraction: 0.1", "segments[1]"),
        ("car_buyers.yaml", "horizon_days: 3", "horizon_days: 3\nname: bike_buyers", "name"),
    ],
)
def test_a_wrong_file_is_refused_while_definitions_load(
    project: SmallProject, file: str, old: str, new: str, named: str
) -> None:
    edit(project.audiences_dir / file, old, new)

    with pytest.raises(ConfigError) as caught:
        build_definitions(project.audiences_dir, project.data_dir, {"spark": SparkThatMustNotStart()})

    message = str(caught.value)
    assert file in message
    assert named in message
    assert all(f"{part}:" in message for part in ("found", "expected", "remedy"))


@pytest.mark.parametrize(
    ("file", "old", "new", "key"),
    [
        ("fields.yaml", "column: app_package", "column: app_pakage", "fields.apps.column"),
        ("fields.yaml", "time_column: event_time", "time_column: happened_at", "events.time_column"),
        ("fields.yaml", "coalesce(device_model", "coalesce(model", "events.filters.not_emulator"),
        ("car_buyers.yaml", "product: car", "goods: car", "label.event.goods"),
    ],
)
def test_a_missing_column_is_refused_before_the_jvm_starts(
    project: SmallProject, file: str, old: str, new: str, key: str
) -> None:
    edit(project.audiences_dir / file, old, new)

    with dg.DagsterInstance.ephemeral() as instance:
        definitions = project.definitions(spark=SparkThatMustNotStart())
        result = materialize(definitions, instance, ["app_events"], SCORED_DAY)

    assert materialized(result) == set()
    message = failures(result)
    assert f"{file}: `{key}` names a column that the events do not have" in message
    assert "the JVM was started" not in message


def test_dagster_validates_the_workspace(tmp_path: Path) -> None:
    """Loads as CI and a deployment do: in a fresh process, from workspace.yaml, the shipped audiences."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"AUDIENCES_DIR", "DATA_DIR"}
    }

    finished = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env=environment | {"DAGSTER_HOME": str(tmp_path), "DAGSTER_DISABLE_TELEMETRY": "yes"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output
    assert "Validation successful for code location audience_factory" in output
    assert "BetaWarning" not in output
    assert "PreviewWarning" not in output

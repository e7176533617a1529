"""A changed fields.yaml over existing data: shown as stale, refused where read, for what it changes alone."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from pipelines.steps.config.behaviour import GROUPS
from pipelines.steps.config.project import load_project
from pipelines.steps.config.settings import (
    DAILY_FORMAT,
    TOKEN_FORMAT,
    daily_settings,
    event_settings,
    fields_of_settings,
    measure_settings,
    require_settings,
    signal_settings,
    token_settings,
)
from pipelines.steps.errors import DataError
from pipelines.steps.features.token_fields import told_signals
from tests.small_project import (
    AS_OF_DAYS,
    AUDIENCES,
    SCORED_DAY,
    SIGNALS,
    Chain,
    SmallProject,
    failures,
    materialize,
    write_small_project,
)

DAY = str(SCORED_DAY)
EVERY_SIGNAL = {f"signals/{name}" for name in SIGNALS}
NEW_FIELD = "fields:\n  products: {column: product, kind: multi, normalizer: text, min_devices: 2}\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return write_small_project(tmp_path_factory.mktemp("settings"))


def edited(project: SmallProject, directory: Path, **changes: tuple[str, str]) -> SmallProject:
    """The project with other files: name → what to replace, by what."""
    audiences = shutil.copytree(project.audiences_dir, directory)
    for name, (old, new) in changes.items():
        file = audiences / f"{name}.yaml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
    return replace(project, audiences_dir=audiences)


# --- which keys decide --------------------------------------------------------------------------------


def test_features_that_tell_of_no_signal_depend_on_none(written: SmallProject, tmp_path: Path) -> None:
    groups = ", ".join(GROUPS)
    bare = edited(
        written,
        tmp_path / "bare",
        fields=("window_days:", f"behaviour: {{without: [{groups}]}}\nwindow_days:"),
    )

    graph = bare.definitions().resolve_asset_graph()
    another = edited(bare, tmp_path / "another", car_buyers=("product: car", "product: bike"))
    before, after = code_versions(bare), code_versions(another)

    tokens = graph.get(dg.AssetKey("feature_tokens"))
    assert {key.to_user_string() for key in tokens.parent_keys} == {"daily_fields"}
    project = load_project(bare.audiences_dir)
    assert told_signals(project, project.signals) == ()
    assert {name for name in after if after[name] != before[name]} == {
        "car_buyers/training_set",
        "signals/car_buyers",
    }


def test_the_settings_of_a_table_are_those_that_decide_on_its_rows(written: SmallProject) -> None:
    project = load_project(written.audiences_dir)
    fields = project.fields

    events, daily = event_settings(fields.events), daily_settings(fields)
    tokens = token_settings(fields, project.signals)

    assert "events.filters.not_emulator" in events
    assert not [key for key in events if "path" in key or "_day" in key]  # where they lie makes no other rows
    assert daily.keys() - events.keys() == {
        f"fields.{field.name}.{key}" for field in fields.fields for key in ("column", "kind")
    }
    assert tokens.keys() - daily.keys() == {
        "window_days",
        "format",
        "behaviour.format",
        "behaviour.without",
        *(key for measure in fields.measures for key in (measure.key, f"measures.{measure.name}.max")),
        *(signal.setting for signal in project.signals),
        *(f"fields.{field.name}.{key}" for field in fields.fields for key in ("normalizer", "max_length")),
    }
    assert fields_of_settings(tokens, ["apps"]) == {
        "window_days": 3,
        "format": 2,
        "fields.apps.column": "app_package",
        "fields.apps.kind": "multi",
        "fields.apps.normalizer": "package",
        "fields.apps.max_length": 100,
    }
    shared = ("format", "window_days", "behaviour.format", "behaviour.without")
    behaviour = {key: tokens[key] for key in shared}
    assert fields_of_settings(tokens, ["behaviour"]) == behaviour
    assert fields_of_settings(tokens, ["apps_distinct"]) == behaviour | {
        "fields.apps.column": "app_package",
        "fields.apps.kind": "multi",
    }
    assert fields_of_settings(tokens, ["name_length_amounts"]) == behaviour | {
        "measures.name_length.sql": "length(app_package)",
        "measures.name_length.max": False,
    }
    assert fields_of_settings(tokens, ["car_pages_past", "bike_buyers_past"]) == behaviour | {
        "signals.car_pages": {"where": "app_package like 'com.cars.%'"},
        "bike_buyers: label": {"where": "event_name = 'purchase' and product in ('bike', 'e-bike')"},
    }


def test_the_settings_of_measures_and_signals_are_kept_apart_from_the_fields(written: SmallProject) -> None:
    project = load_project(written.audiences_dir)
    events = event_settings(project.fields.events)

    signals = {s.name: signal_settings(project.fields.events, s) for s in project.signals}

    assert measure_settings(project.fields) == {"measures.name_length.sql": "length(app_package)"}
    assert {name: {k: v for k, v in own.items() if k not in events} for name, own in signals.items()} == {
        "car_pages": {"signals.car_pages": {"where": "app_package like 'com.cars.%'"}},
        "bike_buyers": {
            "bike_buyers: label": {"where": "event_name = 'purchase' and product in ('bike', 'e-bike')"}
        },
        "car_buyers": {"car_buyers: label": {"event": {"event_name": "purchase", "product": "car"}}},
    }
    assert all(own.keys() >= events.keys() for own in signals.values())


MADE_WITH = {"window_days": 3, "fields.apps.normalizer": "package"}


def test_settings_that_nobody_needs_may_differ() -> None:
    require_settings("feature_tokens", {DAY: {**MADE_WITH, "fields.old.normalizer": "text"}}, MADE_WITH)


def test_a_changed_setting_is_told_with_its_key_its_partitions_and_what_mends_them() -> None:
    made = {"2025-03-01": {**MADE_WITH, "window_days": 7}, "2025-03-02": MADE_WITH, "2025-03-03": {}}

    with pytest.raises(DataError) as raised:
        require_settings("feature_tokens", made, MADE_WITH)

    assert str(raised.value) == (
        "feature_tokens 2025-03-01, 2025-03-03 was made before fields.yaml said what it says now: "
        "`window_days`\n"
        "  found:    7\n"
        "  expected: 3 (also changed: fields.apps.normalizer)\n"
        "  remedy:   backfill features_job over these days; or set fields.yaml back. "
        "A new project wants a DATA_DIR and DAGSTER_HOME of its own"
    )


def test_a_changed_label_names_the_audiences_file_and_not_fields_yaml() -> None:
    with pytest.raises(DataError) as raised:
        require_settings(
            "daily_signals",
            {f"buyers/{DAY}": {"buyers: label": {"where": "a"}}},
            {"buyers: label": {"where": "b"}},
        )

    assert raised.value.what == (
        f"daily_signals buyers/{DAY} was made before the file of audience buyers said what it says now: "
        "`label`"
    )
    assert raised.value.remedy.startswith("backfill the asset signals/<name> over these days")


def test_rows_of_a_former_format_are_refused_with_the_backfill_that_mends_them() -> None:
    with pytest.raises(DataError) as raised:
        require_settings("daily_fields", {DAY: MADE_WITH}, {**DAILY_FORMAT, **MADE_WITH})

    assert raised.value.what == f"daily_fields {DAY} was made by a former version of this program"
    assert raised.value.remedy.startswith("backfill ingestion_job over these days")

    with pytest.raises(DataError) as raised:
        require_settings("feature_tokens", {DAY: MADE_WITH}, {**TOKEN_FORMAT, **MADE_WITH}, by="a champion")

    assert raised.value.what == f"feature_tokens {DAY} was made by a former version of this program"
    assert raised.value.remedy == "backfill features_job over these days"


def test_a_model_that_was_trained_otherwise_is_named() -> None:
    with pytest.raises(DataError) as raised:
        require_settings(
            "feature_tokens", {DAY: MADE_WITH}, {"window_days": 7}, by="the champion v1 of buyers"
        )

    assert str(raised.value) == (
        f"feature_tokens {DAY} was made with another `window_days` than the champion v1 of buyers was "
        "trained with\n"
        "  found:    3\n"
        "  expected: 7\n"
        "  remedy:   run features_job for the as-of days, then training_job: a model goes with its settings"
    )


# --- what is stale ----------------------------------------------------------------------------------


def code_versions(project: SmallProject) -> Mapping[str, str | None]:
    graph = project.definitions().resolve_asset_graph()
    return {key.to_user_string(): graph.get(key).code_version for key in graph.get_all_asset_keys()}


MODELS = {f"car_buyers/{name}_model" for name in ("dnn", "xgboost", "logistic", "champion")}
OF_FIELDS = {
    "feature_tokens",
    "training_days",
    "feature_vocabulary",
    *(f"{audience}/training_set" for audience in AUDIENCES),
}


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("fields", "fields:\n", NEW_FIELD, {"daily_fields", *OF_FIELDS}),
        ("fields", "normalizer: package", "normalizer: text", OF_FIELDS),
        ("fields", "window_days: 3", "window_days: 4", OF_FIELDS),
        (
            "fields",
            "max_late_hours: 2",
            "max_late_hours: 3",
            {"app_events", "daily_fields", *EVERY_SIGNAL, *OF_FIELDS},
        ),
        ("fields", "length(app_package)", "length(product)", {"daily_fields", *OF_FIELDS}),
        (
            "fields",
            "measures:\n",
            "measures:\n  more: {sql: length(product)}\n",
            {"daily_fields", *OF_FIELDS},
        ),
        ("fields", "com.cars.%", "com.bikes.%", {"signals/car_pages", *OF_FIELDS}),
        (
            "fields",
            "signals:\n",
            "signals:\n  opens: {event: {event_name: open}}\n",
            {"signals/opens", *OF_FIELDS},
        ),
        ("fields", "window_days:", "behaviour: {without: [hours]}\nwindow_days:", OF_FIELDS),
        (
            "fields",
            "normalizer: package, min_devices: 2",
            "normalizer: package, min_devices: 3",
            {"feature_vocabulary"},
        ),
        ("car_buyers", "product: car", "product: bike", {"car_buyers/training_set", "signals/car_buyers"}),
        ("car_buyers", "size: 30", "size: 31", {"car_buyers/segments"}),
        (
            "car_buyers",
            "size: 30",
            "min_precision: 0.5",
            {"car_buyers/segments", "car_buyers/champion_model"},
        ),
        ("car_buyers", "max_epochs: 6", "max_epochs: 7", {"car_buyers/dnn_model"}),
        ("car_buyers", "training:", "metric: auc\ntraining:", MODELS),
        ("car_buyers", "format: csv", "format: parquet", {"car_buyers/deliveries"}),
    ],
)
def test_a_change_makes_only_what_it_changes_stale(
    written: SmallProject, tmp_path: Path, file: str, old: str, new: str, stale: set[str]
) -> None:
    before, after = (
        code_versions(written),
        code_versions(edited(written, tmp_path / "new", **{file: (old, new)})),
    )

    assert {name for name, version in after.items() if before.get(name) != version} == stale


def test_another_audience_makes_nothing_stale(written: SmallProject, tmp_path: Path) -> None:
    more = edited(written, tmp_path / "new")
    shutil.copy(more.audiences_dir / "car_buyers.yaml", more.audiences_dir / "boat_buyers.yaml")

    after = code_versions(more)

    assert {name: after[name] for name in code_versions(written)} == code_versions(written)


def status(project: SmallProject, instance: dg.DagsterInstance, asset: str) -> StaleStatus:
    graph = project.definitions().resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return resolver.get_status(dg.AssetKey(asset.split("/")), DAY)


@pytest.fixture
def instance(chain: Chain, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with chain.history(tmp_path / "home") as instance:
        yield instance


def test_what_a_change_concerns_shows_as_stale_in_the_ui(
    chain: Chain, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    changed = edited(chain.project, tmp_path / "new", fields=("normalizer: package", "normalizer: text"))

    assert status(chain.project, instance, "feature_tokens") == StaleStatus.FRESH
    assert status(changed, instance, "feature_tokens") == StaleStatus.STALE
    assert status(changed, instance, "daily_fields") == StaleStatus.FRESH


# --- what is refused, and what goes on ----------------------------------------------------------------


def test_a_new_field_asks_for_the_days_that_it_needs_and_leaves_the_rest_valid(
    chain: Chain, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    more = edited(project, tmp_path / "new", fields=("fields:\n", NEW_FIELD)).definitions()

    tokens = materialize(more, instance, ["feature_tokens"], SCORED_DAY)
    vocabulary = materialize(more, instance, ["feature_vocabulary"])
    scored = materialize(more, instance, ["car_buyers/predictions", "car_buyers/segments"], SCORED_DAY)

    assert "was made before fields.yaml said what it says now: `fields.products.column`" in failures(tokens)
    assert "backfill ingestion_job over these days" in failures(tokens)
    days = ", ".join(map(str, AS_OF_DAYS))
    assert f"feature_tokens {days} was made before fields.yaml said what it says now" in failures(vocabulary)
    assert "backfill features_job over these days" in failures(vocabulary)
    assert scored.success, failures(scored)  # the champion does not know the field


def test_another_normalizer_is_not_scored_with_the_old_model(
    chain: Chain, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    other = edited(
        project, tmp_path / "new", fields=("normalizer: package", "normalizer: text")
    ).definitions()
    before = project.lake.partition("predictions", f"car_buyers/{DAY}")
    assert materialize(other, instance, ["feature_tokens"], SCORED_DAY).success

    scored = materialize(other, instance, ["car_buyers/predictions"], SCORED_DAY)

    assert "was made with another `fields.apps.normalizer` than the champion" in failures(scored)
    assert project.lake.partition("predictions", f"car_buyers/{DAY}") == before


def test_another_filter_asks_for_the_events_again(
    chain: Chain, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    project = chain.project.copied_to(tmp_path / "data")
    other = edited(project, tmp_path / "new", fields=("sdk_gphone%", "sdk_%")).definitions()

    result = materialize(other, instance, ["daily_fields"], SCORED_DAY)

    assert (
        f"app_events {DAY} was made before fields.yaml said what it says now: `events.filters.not_emulator`"
        in (failures(result))
    )

"""What an asset says of itself before it was ever made: whose it is, what it holds, where to read on."""

from datetime import date
from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets.partitions import LONGEST_RUN_HOURS, daily
from pipelines.steps.config.fields import MIN_DEVICES, EventSource
from pipelines.steps.config.project import load_project
from pipelines.steps.errors import ConfigError
from pipelines.steps.events.app_events import table_columns
from pipelines.steps.table_columns import Shown
from tests.small_project import AUDIENCES, SmallProject, write_small_project

ROOT = Path(__file__).parent.parent
PARQUET = {"spark", "parquet"}
KINDS = {
    "app_events": PARQUET,
    "daily_fields": PARQUET,
    "feature_tokens": PARQUET,
    "training_days": PARQUET,
    "feature_vocabulary": {"spark", "json"},
    "training_set": PARQUET,
    "dnn_model": {"pytorch"},
    "xgboost_model": {"xgboost"},
    "logistic_model": {"scikitlearn", "pytorch"},
    "champion_model": {"python"},
    "predictions": PARQUET,
    "segments": PARQUET,
    "deliveries": {"csv"},
}
TABLES = KINDS.keys() - {"training_days", "dnn_model", "xgboost_model", "logistic_model", "champion_model"}
OWN = KINDS.keys() - {"app_events", "daily_fields", "feature_tokens", "training_days", "feature_vocabulary"}
HOLD_NO_IDS = {*(KINDS.keys() - TABLES), "feature_vocabulary"}


@pytest.fixture
def project(tmp_path: Path) -> SmallProject:
    return write_small_project(tmp_path)


def assets_of(project: SmallProject, audience: str = "car_buyers") -> dict[str, dg.AssetSpec]:
    """Name → what Dagster knows of the shared assets, and of an audience's own."""
    specs = project.definitions().resolve_all_asset_specs()
    return {
        spec.key.path[-1]: spec for spec in specs if spec.key.path[0] == audience or len(spec.key.path) == 1
    }


def head(file: Path, line: str) -> None:
    file.write_text(f"{line}\n{file.read_text()}")


def test_every_asset_says_what_it_is_made_with(project: SmallProject) -> None:
    assets = assets_of(project)

    assert {name: spec.kinds for name, spec in assets.items()} == KINDS
    assert [name for name, spec in assets.items() if not spec.code_version] == []


def test_every_asset_says_whether_it_holds_device_ids(project: SmallProject) -> None:
    tags = {name: spec.tags["personal_data"] for name, spec in assets_of(project).items()}

    assert {name for name, tag in tags.items() if tag == "none"} == HOLD_NO_IDS
    assert set(tags.values()) == {"none", "device_ids"}


def test_every_table_describes_its_columns(project: SmallProject) -> None:
    schemas = {
        name: spec.metadata["dagster/column_schema"]
        for name, spec in assets_of(project).items()
        if "dagster/column_schema" in spec.metadata
    }

    assert schemas.keys() == TABLES
    assert [
        column for schema in schemas.values() for column in schema.columns if not column.description
    ] == []


def test_every_asset_names_a_page_its_code_and_the_file_that_a_user_edits(project: SmallProject) -> None:
    assets = assets_of(project)

    for name, spec in assets.items():
        code, edited, page = spec.metadata["dagster/code_references"].code_references
        module = "candidate_models" if name in {"dnn_model", "xgboost_model", "logistic_model"} else name
        assert Path(code.file_path) == ROOT / "assets" / f"{module}.py"
        lines = Path(code.file_path).read_text().splitlines()[code.line_number - 1 :]
        assert f"def {name}(" in next(line for line in lines if line.strip().startswith("def "))
        file = "fields.yaml" if len(spec.key.path) == 1 else "car_buyers.yaml"
        assert Path(edited.file_path) == project.audiences_dir / file
        assert page.label == spec.metadata["docs"].path
        assert Path(page.file_path).read_text() == (ROOT / page.label).read_text()


def test_an_audience_describes_its_assets_in_its_own_words(project: SmallProject) -> None:
    head(project.audiences_dir / "car_buyers.yaml", "description: Devices likely to buy a car")

    described = {
        name for name, spec in assets_of(project).items() if "likely to buy a car" in (spec.description or "")
    }
    others = assets_of(project, "bike_buyers").values()

    assert described == OWN
    assert all("likely to buy a car" not in (spec.description or "") for spec in others)
    assert (assets_of(project)["segments"].description or "").startswith("The devices of each segment")


def test_an_asset_has_the_owner_that_its_file_names_or_else_that_of_the_fields(project: SmallProject) -> None:
    head(project.audiences_dir / "fields.yaml", "owner: team:data")
    head(project.audiences_dir / "car_buyers.yaml", "owner: cars@example.com")

    of_cars, of_bikes = (assets_of(project, audience) for audience in reversed(AUDIENCES))

    assert of_cars["app_events"].owners == of_bikes["segments"].owners == ["team:data"]
    assert of_cars["segments"].owners == ["cars@example.com"]


def test_without_an_owner_an_asset_has_none(project: SmallProject) -> None:
    assert {tuple(spec.owners) for spec in assets_of(project).values()} == {()}


def test_an_owner_that_dagster_would_refuse_is_refused_with_its_file(project: SmallProject) -> None:
    head(project.audiences_dir / "car_buyers.yaml", "owner: growth")

    with pytest.raises(ConfigError) as error:
        load_project(project.audiences_dir)

    assert "car_buyers.yaml" in str(error.value)
    assert "`owner`" in str(error.value)
    assert "an e-mail address, or team: and a name, as in team:growth" in str(error.value)


# --- freshness --------------------------------------------------------------------------------------


def source(max_late_hours: int, last_day: date | None) -> EventSource:
    return EventSource(
        path="/events",
        id_column="device_id",
        time_column="event_time",
        max_late_hours=max_late_hours,
        first_day=date(2025, 3, 1),
        last_day=last_day,
    )


@pytest.mark.parametrize(("max_late_hours", "deadline"), [(2, "30 8 * * *"), (23, "30 5 * * *")])
def test_a_daily_asset_is_expected_by_the_end_of_the_longest_run_of_the_schedule(
    max_late_hours: int, deadline: str
) -> None:
    policy = daily(source(max_late_hours, None)).freshness

    assert isinstance(policy, dg.FreshnessPolicy)
    assert (policy.deadline_cron, policy.timezone) == (deadline, "UTC")  # type: ignore[attr-defined]
    assert policy.lower_bound_delta.total_seconds() == 6 * 3600  # type: ignore[attr-defined]


def test_the_longest_run_is_the_one_that_dagster_lets_go_on() -> None:
    settings = yaml.safe_load((ROOT / "dagster_instance.yaml").read_text())

    assert settings["run_monitoring"]["max_runtime_seconds"] == LONGEST_RUN_HOURS * 3600


def test_nothing_is_expected_once_the_events_have_ended() -> None:
    today = date(2025, 3, 14)

    assert daily(source(2, date(2025, 3, 13)), today).freshness is not None
    assert daily(source(2, date(2025, 3, 12)), today).freshness is None


# --- what a sample of raw events may show -----------------------------------------------------------


def test_a_raw_column_is_shown_as_its_fields_allow_and_another_one_as_the_strictest(
    project: SmallProject,
) -> None:
    columns = table_columns(load_project(project.audiences_dir))

    assert columns["app_package"].min_devices == 2  # what fields.yaml says
    assert columns["product"].min_devices == MIN_DEVICES  # of no field
    assert {column.shown for name, column in columns.items() if name in {"app_package", "product"}} == {
        Shown.COMMON_VALUES
    }
    assert (columns["device_id"].shown, columns["event_time"].shown) == (Shown.NUMBERS, Shown.HOURS)
    assert columns["app_package"].description == (
        "The raw column `app_package`, as it came; read by field apps."
    )

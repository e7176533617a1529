"""The UI of `make ui`: a history made by real runs, asked for over GraphQL as the browser does."""

import json
import time

from pipelines import demo
from tests.small_project import FIRST_DAY, LAST_DAY, SCORED_DAY, SIGNALS, Chain, day_keys
from tests.ui_server import UiServer, ask

LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } }
} } } }"""
RUNS = """{ runsOrError { ... on Runs { results { jobName status } } } }"""
TIMELINE = """{ runsOrError(filter: {statuses: [SUCCESS, FAILURE, CANCELED], updatedAfter: %f}, limit: 500) {
    ... on Runs { results { id repositoryOrigin { repositoryName repositoryLocationName } } }
} }"""
RUNS_OF_JOBS = """{ repositoryOrError(
    repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "audience_factory"}
) { ... on Repository { pipelines { name runs(limit: 5) { id } } } } }"""
RUNS_OF_A_JOB = """{ runsOrError(filter: {
    pipelineName: "features_job",
    tags: [{key: ".dagster/repository", value: "__repository__@audience_factory"}]
}) { ... on Runs { results { id status tags { key value } } } } }"""
SEGMENTS = """{ assetOrError(assetKey: {path: ["car_buyers", "segments"]}) { ... on Asset {
    assetMaterializations(limit: 1) {
        partition metadataEntries { label ... on IntMetadataEntry { intValue } }
    }
} } }"""
CHECKS = """{ assetNodeOrError(assetKey: {path: ["car_buyers", "segments"]}) { ... on AssetNode {
    assetChecksOrError { ... on AssetChecks { checks {
        name blocking executionForLatestMaterialization { status evaluation { success } }
    } } }
} } }"""
DAILY_ROWS = """{ assetOrError(assetKey: {path: ["daily_fields"]}) { ... on Asset {
    assetMaterializations(limit: 100) {
        partition metadataEntries { label ... on IntMetadataEntry { intValue } }
    }
} } }"""
TOKENS = """{ assetOrError(assetKey: {path: ["feature_tokens"]}) { ... on Asset {
    assetMaterializations(limit: 1) { metadataEntries {
        label
        ... on TableSchemaMetadataEntry { schema { columns { name type description } } }
        ... on TableColumnLineageMetadataEntry {
            lineage { columnName columnDeps { assetKey { path } columnName } }
        }
        ... on TableMetadataEntry { table { records } }
    } }
} } }"""
ASSETS = """{ assetNodes { assetKey { path } kinds opVersion description } }"""
EXECUTIONS = """{ assetCheckExecutions(
    assetKey: {path: ["daily_fields"]}, checkName: "every_event_is_aggregated", limit: 5, partition: "%s"
) { runId status partition } }"""
SCHEDULES = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
    schedules { name scheduleState { status } }
} } } }"""


def test_the_location_loads(ui: str) -> None:
    """Its workspace.yaml is found, which settings in pyproject.toml would make Dagster ignore."""
    [location] = ask(ui, LOCATIONS)

    assert (location["name"], location["loadStatus"]) == ("audience_factory", "LOADED")
    assert location["locationOrLoadError"] == {"__typename": "RepositoryLocation"}


def test_the_runs_are_there(chain: Chain, ui: str) -> None:
    runs = [run for run in ask(ui, RUNS) if run["jobName"] != "__ASSET_JOB"]

    assert [run["status"] for run in runs] == ["SUCCESS"] * (len(chain.results) + 1)
    assert {run["jobName"] for run in runs} == {"ingestion_job", "features_job", "training_job", "daily_job"}


def test_a_run_of_the_demo_is_on_the_timeline_and_below_its_job(ui: str) -> None:
    """There the UI shows runs of its code location only; those of the chain were made without one."""
    [run] = ask(ui, RUNS_OF_A_JOB)
    timeline = ask(ui, TIMELINE % (time.time() - 3_600))
    jobs = {job["name"]: job["runs"] for job in ask(ui, RUNS_OF_JOBS)}

    location = {"repositoryName": "__repository__", "repositoryLocationName": "audience_factory"}
    assert [each["id"] for each in timeline if each["repositoryOrigin"] == location] == [run["id"]]
    assert jobs["features_job"] == [{"id": run["id"]}]
    assert jobs["daily_job"] == []
    assert run["status"] == "SUCCESS"
    assert {"key": demo.RUN_TAG, "value": "true"} in run["tags"]


def test_the_segments_show_their_sizes(chain: Chain, ui: str) -> None:
    [materialization] = ask(ui, SEGMENTS)

    shown = {entry["label"]: entry.get("intValue") for entry in materialization["metadataEntries"]}

    assert materialization["partition"] == str(SCORED_DAY)
    rows = chain.project.lake.partition("segments", f"car_buyers/{SCORED_DAY}").rows
    assert shown["dagster/row_count"] == rows
    assert shown["devices/best_30"] == 30
    assert shown["devices/top_fifth"] == rows - 30


def test_the_checks_of_the_segments_show_as_passed(ui: str) -> None:
    checks = ask(ui, CHECKS)

    shown = {check["name"]: check["executionForLatestMaterialization"] for check in checks}

    own = {"top_fifth_can_be_delivered", "best_30_can_be_delivered"}
    assert shown.keys() == {"every_probability_is_in_0_to_1", "no_device_is_twice_in_a_segment", *own}
    assert {check["name"] for check in checks if not check["blocking"]} == own
    passed = {"status": "SUCCEEDED", "evaluation": {"success": True}}
    assert all(execution == passed for execution in shown.values())


def test_each_day_of_a_range_run_shows_its_own_rows(chain: Chain, ui: str) -> None:
    shown = {
        each["partition"]: {entry["label"]: entry.get("intValue") for entry in each["metadataEntries"]}
        for each in ask(ui, DAILY_ROWS)
    }

    rows = {day: entries["dagster/row_count"] for day, entries in shown.items()}
    lake = chain.project.lake
    assert rows == {day: lake.partition("daily_fields", day).rows for day in day_keys(FIRST_DAY, LAST_DAY)}
    assert len(set(rows.values())) > 1
    assert sum(rows.values()) == lake.snapshot("daily_fields", list(rows)).rows


def test_a_table_shows_its_columns_where_they_come_from_and_a_sample(ui: str) -> None:
    [materialization] = ask(ui, TOKENS)
    shown = {entry["label"]: entry for entry in materialization["metadataEntries"]}

    columns = {each["name"]: each for each in shown["dagster/column_schema"]["schema"]["columns"]}
    tokens = {"apps", "device_model", "device_name"}
    behaviour = {"behaviour", "apps_distinct", "name_length_amounts", *(f"{name}_past" for name in SIGNALS)}
    assert columns.keys() == {
        "device_id",
        "day",
        "last_event_time",
        *tokens,
        *(f"{field}_weights" for field in tokens),
        *behaviour,
    }
    assert columns["apps"]["type"] == "array<string>"
    assert columns["apps"]["description"].startswith("Tokens of `app_package` in the last 3 days (package)")
    lineage = {each["columnName"]: each["columnDeps"] for each in shown["dagster/column_lineage"]["lineage"]}
    assert lineage["apps"] == [{"assetKey": {"path": ["daily_fields"]}, "columnName": "apps"}]
    records = [json.loads(record) for record in shown["sample"]["table"]["records"]]
    assert len(records) == 5
    assert {record["device_id"] for record in records} == {f"device {number}" for number in range(1, 6)}
    assert any("com." in record["apps"] for record in records)


def test_every_asset_shows_its_kinds_its_code_version_and_its_description(ui: str) -> None:
    nodes = {"/".join(node["assetKey"]["path"]): node for node in ask(ui, ASSETS)}

    assert [name for name, node in nodes.items() if not (node["opVersion"] and node["description"])] == []
    assert set(nodes["car_buyers/predictions"]["kinds"]) == {"spark", "parquet"}
    assert set(nodes["bike_buyers/deliveries"]["kinds"]) == {"parquet"}


def test_the_schedules_show_as_off(ui: str) -> None:
    [repository] = ask(ui, SCHEDULES)

    assert {
        schedule["name"]: schedule["scheduleState"]["status"] for schedule in repository["schedules"]
    } == {
        "daily_schedule": "STOPPED",
        "weekly_training_schedule": "STOPPED",
    }


def test_a_run_launched_in_the_ui_for_an_older_day_is_checked_for_that_day(
    ui: str, launched_run: str
) -> None:
    executions = ask(ui, EXECUTIONS % FIRST_DAY)

    [launched] = [each for each in executions if each["runId"] == launched_run]
    assert launched == {"runId": launched_run, "status": "SUCCEEDED", "partition": str(FIRST_DAY)}


def test_the_ui_says_no_warning_but_the_one_that_is_explained(ui_server: UiServer) -> None:
    """README explains what the daemon says of older events; the JVM of a run says that it uses a module."""
    known = ("No cursor for event type", "Using incubator modules")
    said = ui_server.log.read_text().splitlines()

    warnings = [line for line in said if "warning" in line.lower()]
    assert [line for line in warnings if not any(text in line for text in known)] == []

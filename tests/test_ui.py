"""The UI of `make ui`: a history made by real runs, asked for over GraphQL as the browser does."""

from tests.small_project import FIRST_DAY, SCORED_DAY, Chain
from tests.ui_server import UiServer, ask

LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError { __typename ... on PythonError { message } }
} } } }"""
RUNS = """{ runsOrError { ... on Runs { results { jobName status } } } }"""
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

    assert [run["status"] for run in runs] == ["SUCCESS"] * len(chain.results)
    assert {run["jobName"] for run in runs} == {"ingestion_job", "features_job", "training_job", "daily_job"}


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

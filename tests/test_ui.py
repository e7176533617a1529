"""The UI: a history made by real runs, asked for the way the browser does, over GraphQL."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import dagster as dg
import pytest

from pipelines import demo
from tests.small_project import FIRST_DAY, LAST_DAY, SCORED_DAY, Chain, SmallProject, day_keys

ROOT = Path(__file__).parent.parent
START_SECONDS = 240
"""Two Python processes import Dagster and torch: seconds when idle, minutes on a machine that is not."""
STOP_SECONDS = 30

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
LAUNCH = """mutation { launchPipelineExecution(executionParams: {
    selector: {
        repositoryLocationName: "audience_factory", repositoryName: "__repository__",
        pipelineName: "__ASSET_JOB", assetSelection: [{path: ["daily_fields"]}]
    },
    mode: "default", runConfigData: "{}",
    executionMetadata: {tags: [{key: "dagster/partition", value: "%s"}]}
}) { ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = """{ runOrError(runId: "%s") { ... on Run { status } } }"""
EXECUTIONS = """{ assetCheckExecutions(
    assetKey: {path: ["daily_fields"]}, checkName: "every_event_is_aggregated", limit: 5, partition: "%s"
) { runId status partition } }"""
SCHEDULES = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
    schedules { name scheduleState { status } }
} } } }"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(module: str, arguments: Sequence[str], home: Path, project: SmallProject) -> Iterator[str]:
    """Runs a server of Dagster's until the block ends; gives its address, once it answers."""
    home.mkdir(exist_ok=True)
    shutil.copy(ROOT / "dagster.yaml", home)
    port, log = free_port(), home.parent / f"{module}.log"
    places = {"DAGSTER_HOME": home, "AUDIENCES_DIR": project.audiences_dir, "DATA_DIR": project.data_dir}
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "-h", "127.0.0.1", "-p", str(port)],
            cwd=ROOT,
            env=os.environ | {name: str(path) for name, path in places.items()},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_it_answers(f"{address}/server_info", server, log)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)  # the session that Popen started: nothing but this server
            server.wait()


def wait_until_it_answers(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urlopen(url, timeout=10):
                return
        except (URLError, ConnectionError, TimeoutError):
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"nothing answers at {url}:\n{log.read_text()}")
            time.sleep(0.5)


def ask(address: str, query: str) -> Any:
    """The answer to a GraphQL query, without the levels that have one key only."""
    body = json.dumps({"query": query}).encode()
    request = Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer
    data = answer["data"]
    while isinstance(data, dict) and len(data) == 1:
        [data] = data.values()
    return data


def run_as_the_demo_does(instance: dg.DagsterInstance) -> None:
    """Runs a job named like one of ours; where the UI lists it depends on no more of it."""

    @dg.asset
    def nothing_much() -> None: ...

    job = dg.define_asset_job("features_job", [nothing_much])
    definitions = dg.Definitions([nothing_much], jobs=[job], executor=dg.in_process_executor)
    demo.Chain(definitions, instance).run("features_job", "one of a demo")


@pytest.fixture(scope="module")
def ui(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a webserver on the history of the small project's chain, and of one run of a demo."""
    home = shutil.copytree(chain.home, tmp_path_factory.mktemp("ui") / "dagster_home")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        run_as_the_demo_does(instance)
    with serving("dagster_webserver", ["-w", "workspace.yaml"], home, chain.project) as address:
        yield address


def test_the_location_loads(ui: str) -> None:
    [location] = ask(ui, LOCATIONS)

    assert (location["name"], location["loadStatus"]) == ("audience_factory", "LOADED")
    assert location["locationOrLoadError"] == {"__typename": "RepositoryLocation"}


def test_the_runs_are_there(chain: Chain, ui: str) -> None:
    runs = ask(ui, RUNS)

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
    assert columns.keys() == {"device_id", "day", "last_event_time", "apps", "device_model", "device_name"}
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


@pytest.fixture(scope="module")
def dev(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bare `dagster dev`, with its daemon, on a copy of the history and its data.

    No -w, no -m: it finds workspace.yaml, which settings in pyproject.toml would make it ignore.
    """
    root = tmp_path_factory.mktemp("dev")
    home = shutil.copytree(chain.home, root / "dagster_home")
    with serving("dagster", ["dev"], home, chain.project.copied_to(root / "data")) as address:
        yield address


def test_a_bare_dagster_dev_serves_the_workspace(dev: str) -> None:
    [location] = ask(dev, LOCATIONS)

    assert location["name"] == "audience_factory"
    assert location["locationOrLoadError"] == {"__typename": "RepositoryLocation"}


def test_a_run_launched_in_the_ui_for_an_older_day_is_checked_for_that_day(dev: str) -> None:
    older = str(FIRST_DAY)
    run_id = ask(dev, LAUNCH % older)

    end = time.monotonic() + START_SECONDS
    while (status := ask(dev, STATUS % run_id)) not in {"SUCCESS", "FAILURE", "CANCELED"}:
        assert time.monotonic() < end, status
        time.sleep(1)

    assert status == "SUCCESS"
    executions = ask(dev, EXECUTIONS % older)
    assert [each["partition"] for each in executions if each["runId"] == run_id] == [older]
    assert executions[0]["status"] == "SUCCEEDED"

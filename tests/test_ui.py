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

import pytest

from tests.small_project import FIRST_DAY, SCORED_DAY, Chain, SmallProject

ROOT = Path(__file__).parent.parent
START_SECONDS = 240
"""Two Python processes import Dagster and torch: seconds when idle, minutes on a machine that is not."""
STOP_SECONDS = 30

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
    shutil.copy(ROOT / "dagster_instance.yaml", home / "dagster.yaml")
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


@pytest.fixture(scope="module")
def ui(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a webserver on the history of the small project's chain."""
    home = shutil.copytree(chain.home, tmp_path_factory.mktemp("ui") / "dagster_home")
    with serving("dagster_webserver", ["-w", "workspace.yaml"], home, chain.project) as address:
        yield address


def test_the_location_loads(ui: str) -> None:
    [location] = ask(ui, LOCATIONS)

    assert (location["name"], location["loadStatus"]) == ("audience_factory", "LOADED")
    assert location["locationOrLoadError"] == {"__typename": "RepositoryLocation"}


def test_the_runs_are_there(chain: Chain, ui: str) -> None:
    runs = ask(ui, RUNS)

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

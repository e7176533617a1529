"""Dagster's UI for tests: started on a copy of a history, and asked over GraphQL as the browser does."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import dagster as dg
import pytest

from pipelines import demo
from tests.small_project import SmallProject

ROOT = Path(__file__).parent.parent
START_SECONDS = 240
"""Three Python processes import Dagster and torch: seconds when idle, minutes on a machine that is not."""
STOP_SECONDS = 30

LAUNCH = """mutation { launchPipelineExecution(executionParams: {
    selector: {
        repositoryLocationName: "audience_factory", repositoryName: "__repository__",
        pipelineName: "__ASSET_JOB", assetSelection: [{path: ["daily_fields"]}]
    },
    mode: "default", runConfigData: "{}",
    executionMetadata: {tags: [{key: "dagster/partition", value: "%s"}]}
}) { ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STATUS = """{ runOrError(runId: "%s") { ... on Run { status } } }"""


@dataclass(frozen=True)
class UiServer:
    """A running UI.

    Attributes:
        address: Where it answers.
        log: The file that holds what it says.
    """

    address: str
    log: Path


def run_as_the_demo_does(instance: dg.DagsterInstance) -> None:
    """Runs a job named like one of ours; where the UI lists it depends on no more of it."""

    @dg.asset
    def nothing_much() -> None: ...

    job = dg.define_asset_job("features_job", [nothing_much])
    definitions = dg.Definitions([nothing_much], jobs=[job], executor=dg.in_process_executor)
    demo.Chain(definitions, instance).run("features_job", "one of a demo")


@contextmanager
def serving(home: Path, project: SmallProject, environment: Mapping[str, str]) -> Iterator[UiServer]:
    """Runs what `make ui` runs until the block ends, its runs included; gives it once it answers."""
    shutil.copy(ROOT / "dagster_instance.yaml", home / "dagster.yaml")
    port, log = free_port(), home.parent / "ui.log"
    places = {"DAGSTER_HOME": home, "AUDIENCES_DIR": project.audiences_dir, "DATA_DIR": project.data_dir}
    settings = [f"{name}={path}" for name, path in places.items()]  # by `env`: they win over those of a .env
    # A shell lets what it runs in the background ignore Ctrl-C, and so would the server, which it is to end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as output:
        server = subprocess.Popen(
            [ROOT / "run", "env", *settings, *command_of_make_ui(port)],
            env={**environment, "DAGSTER_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_it_answers(f"{address}/server_info", server, log)
        yield UiServer(address, log)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)  # the session that Popen started: nothing but this server
            server.wait()


def command_of_make_ui(port: int) -> list[str]:
    """What the Makefile starts the UI with, on another port; `make ui` itself would set up first."""
    [line] = re.findall(r"^UI = (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return shlex.split(line.replace("$$PORT", str(port)))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


def launch_day(address: str, day: str) -> str:
    """Launches `daily_fields` for a day, as the UI's button does, and waits for the run; returns its id."""
    run_id = ask(address, LAUNCH % day)
    end = time.monotonic() + START_SECONDS
    while (status := ask(address, STATUS % run_id)) not in {"SUCCESS", "FAILURE", "CANCELED"}:
        assert time.monotonic() < end, status
        time.sleep(1)
    assert status == "SUCCESS"
    return str(run_id)

"""Scoring survives what happens to its processes and files: a few of the schedules of `benchmarks.chaos`.

They run in processes of their own, because executors do, and because one Python process has one JVM.
"""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.chaos_schedules import run_schedules

SURVIVED = ["kill_worker", "overtake_stopped"]
NAMED = {
    "truncate_before": r"the footer of .*\.parquet cannot be read",
    "lose_task": r"other rows of predictions were written than expected",
    "block_job_commit": r"_SUCCESS",
}
DRIVER_KILLED = ["kill_driver_in_commit"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def schedules(
    program_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Fault → its last schedule, which hit; those before it missed."""
    figures = tmp_path_factory.mktemp("chaos") / "figures.json"
    faults = [*SURVIVED, *NAMED, *DRIVER_KILLED]
    return run_schedules("benchmarks.chaos", faults, figures, program_environment, "--row-groups", "16")


def test_readers_saw_the_old_rows_or_the_new_and_a_rerun_gave_the_new(
    schedules: dict[str, dict[str, Any]],
) -> None:
    assert [violation for s in schedules.values() for violation in s["violations"]] == []
    assert all(s["reads"] > 1 for s in schedules.values())


@pytest.mark.parametrize("fault", SURVIVED)
def test_the_job_goes_on_without(fault: str, schedules: dict[str, dict[str, Any]]) -> None:
    schedule = schedules[fault]
    assert (schedule["ending"], schedule["visible"]) == ("recovered", "the new rows")
    assert schedule["tasks_lost"] > 0


@pytest.mark.parametrize(("fault", "message"), NAMED.items())
def test_the_job_ends_with_one_error_that_names_it(
    fault: str, message: str, schedules: dict[str, dict[str, Any]]
) -> None:
    schedule = schedules[fault]
    assert (schedule["ending"], schedule["visible"]) == ("failed", "the old rows")
    assert re.search(message, schedule["error"])


@pytest.mark.parametrize("fault", DRIVER_KILLED)
def test_a_killed_driver_leaves_the_old_rows(fault: str, schedules: dict[str, dict[str, Any]]) -> None:
    schedule = schedules[fault]
    assert (schedule["ending"], schedule["visible"]) == ("killed", "the old rows")

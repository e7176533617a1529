"""The two schedules: off by default, and right about what they ask for when turned on."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from tests.small_project import LAST_DAY, MAX_LATE_HOURS, SmallProject, write_small_project

DAILY, WEEKLY = "daily_schedule", "weekly_training_schedule"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return write_small_project(tmp_path_factory.mktemp("schedules"))


@pytest.fixture(scope="module")
def definitions(project: SmallProject) -> dg.Definitions:
    return project.definitions()


def requests(definitions: dg.Definitions, schedule: str, at: datetime) -> Sequence[dg.RunRequest]:
    """What a schedule asks for when it is evaluated, by Dagster's own helper, as of a time."""
    repository = definitions.get_repository_def()
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_schedule_context(
            instance, scheduled_execution_time=at, repository_def=repository
        ) as context,
    ):
        evaluated = definitions.resolve_schedule_def(schedule).evaluate_tick(context)
    return evaluated.run_requests or []


@pytest.mark.parametrize("schedule", [DAILY, WEEKLY])
def test_schedules_are_off_by_default(definitions: dg.Definitions, schedule: str) -> None:
    assert definitions.resolve_schedule_def(schedule).default_status == dg.DefaultScheduleStatus.STOPPED


def test_there_are_no_others(definitions: dg.Definitions) -> None:
    assert {schedule.name for schedule in definitions.get_repository_def().schedule_defs} == {DAILY, WEEKLY}


@pytest.mark.parametrize(
    ("schedule", "cron", "job"),
    [(DAILY, f"30 {MAX_LATE_HOURS} * * *", "daily_job"), (WEEKLY, "0 5 * * 1", "training_job")],
)
def test_schedules_run_in_utc(definitions: dg.Definitions, schedule: str, cron: str, job: str) -> None:
    definition = definitions.resolve_schedule_def(schedule)

    assert (definition.cron_schedule, definition.execution_timezone) == (cron, "UTC")
    assert definition.job_name == job


def test_the_daily_schedule_asks_for_the_day_that_just_ended(definitions: dg.Definitions) -> None:
    [request] = requests(definitions, DAILY, datetime(2025, 3, 8, MAX_LATE_HOURS, 30, tzinfo=UTC))

    assert request.partition_key == request.run_key == "2025-03-07"


def test_the_daily_schedule_asks_for_nothing_before_the_first_day_has_ended(
    definitions: dg.Definitions,
) -> None:
    assert requests(definitions, DAILY, datetime(2025, 3, 1, MAX_LATE_HOURS, 30, tzinfo=UTC)) == []


def test_the_daily_schedule_repeats_no_day_after_the_last(definitions: dg.Definitions) -> None:
    """Dagster launches one run per run key: asking for the last day again starts nothing."""
    ticks = [datetime(2025, 3, day, MAX_LATE_HOURS, 30, tzinfo=UTC) for day in (15, 16, 31)]

    keys = [request.run_key for tick in ticks for request in requests(definitions, DAILY, tick)]

    assert keys == [str(LAST_DAY)] * 3


def test_the_daily_schedule_goes_on_where_no_last_day_is_set(project: SmallProject, tmp_path: Path) -> None:
    for file in project.audiences_dir.iterdir():
        lines = file.read_text().splitlines(keepends=True)
        (tmp_path / file.name).write_text("".join(line for line in lines if "last_day" not in line))
    endless = SmallProject(tmp_path, project.data_dir, project.accepted, 0, 0, {}).definitions()

    [request] = requests(endless, DAILY, datetime(2031, 7, 2, MAX_LATE_HOURS, 30, tzinfo=UTC))

    assert request.partition_key == "2031-07-01"


def test_the_weekly_schedule_asks_for_the_training_job(definitions: dg.Definitions) -> None:
    [request] = requests(definitions, WEEKLY, datetime(2025, 3, 10, 5, tzinfo=UTC))

    assert request.partition_key is None
    assert request.asset_selection is None  # all that the job names

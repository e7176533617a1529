"""Verdicts by day and version: what a check said of exactly this, however its run was launched."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from assets.partitions import checked_days, days_of, keys_of, split_range
from resources.expectations import VERSION, Check, Subject, check_specs, evaluate, expect, report
from resources.verdicts import FAILED, FEW, NEVER, PAGE, PASSED, Verdicts

ASSET, CHECK = dg.AssetKey("sizes"), "positive"
FIRST = date(2025, 1, 1)
DAYS = dg.DailyPartitionsDefinition(start_date=str(FIRST), end_date="2027-01-01")
CHECKS = [
    Check(
        CHECK, "every size is above 0", [expect("ExpectColumnValuesToBeBetween", column="size", min_value=1)]
    )
]


def definitions(sizes: Mapping[str, int], version: str = "v1") -> dg.Definitions:
    """An asset of one number a day, 1 where none is given, and its check."""

    @dg.asset(key=ASSET, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def asset(context: dg.AssetExecutionContext) -> None:
        days_of(context)

    @dg.multi_asset_check(name="sizes_checks", specs=check_specs(ASSET, CHECKS, DAYS))
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        days = keys_of(checked_days(context))
        evidence = pd.DataFrame({"day": days, "size": [sizes.get(day, 1) for day in days]})
        subjects = [Subject(version, day) for day in days]
        yield from report(context, evaluate(ASSET, CHECKS, evidence, subjects))

    return dg.Definitions(assets=[asset], asset_checks=[checks], executor=dg.in_process_executor)


def run_range(
    instance: dg.DagsterInstance, found: dg.Definitions, first: str, last: str
) -> dg.ExecuteInProcessResult:
    tags = {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
    job = found.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def say(instance: dg.DagsterInstance, passed: bool, version: str, day: str) -> None:
    """An evaluation by a run of its own."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=ASSET,
        check_name=CHECK,
        passed=passed,
        metadata={VERSION: dg.MetadataValue.text(version)},
        partition=day,
    )
    kind = DagsterEventType.ASSET_CHECK_EVALUATION.value
    event = DagsterEvent(kind, "a_job", event_specific_data=evaluation)
    instance.report_dagster_event(event, str(uuid.uuid4()))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_a_range_gives_each_day_a_verdict_and_none_is_skipped(instance: dg.DagsterInstance) -> None:
    result = run_range(instance, definitions({"2025-01-03": 0}), "2025-01-01", "2025-01-04")

    assert not result.success  # the check blocks
    history = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(ASSET, CHECK), limit=100
    )
    assert {(each.partition, each.status) for each in history} == {
        ("2025-01-01", AssetCheckExecutionRecordStatus.SUCCEEDED),
        ("2025-01-02", AssetCheckExecutionRecordStatus.SUCCEEDED),
        ("2025-01-03", AssetCheckExecutionRecordStatus.FAILED),
        ("2025-01-04", AssetCheckExecutionRecordStatus.SUCCEEDED),
        (None, AssetCheckExecutionRecordStatus.FAILED),  # of the range as a whole
    }
    assert {each.run_id for each in history} == {result.run_id}


def test_a_run_for_one_day_gives_that_day_its_verdict(instance: dg.DagsterInstance) -> None:
    run_range(instance, definitions({}), "2025-01-01", "2025-01-04")
    job = definitions({"2025-01-02": 0}, "v2").resolve_implicit_global_asset_job_def()

    job.execute_in_process(instance=instance, partition_key="2025-01-02", raise_on_error=False)

    verdicts = Verdicts(instance)
    assert verdicts.of(ASSET, CHECK, "v2", "2025-01-02") == FAILED
    assert verdicts.of(ASSET, CHECK, "v1", "2025-01-02") == PASSED
    assert verdicts.of(ASSET, CHECK, "v2", "2025-01-04") == NEVER


def test_an_old_day_is_found_behind_any_number_of_later_ones(instance: dg.DagsterInstance) -> None:
    say(instance, True, "v1", str(FIRST))
    for ahead in range(1, 2 * PAGE + 10):
        say(instance, False, "v1", str(FIRST + timedelta(days=ahead)))

    assert Verdicts(instance).of(ASSET, CHECK, "v1", str(FIRST)) == PASSED


def test_an_old_version_is_found_behind_any_number_of_newer_ones(instance: dg.DagsterInstance) -> None:
    say(instance, True, "v1", str(FIRST))
    for number in range(2 * PAGE + 10):
        say(instance, False, f"later {number}", str(FIRST))

    assert Verdicts(instance).of(ASSET, CHECK, "v1", str(FIRST)) == PASSED


def test_the_newest_verdict_on_a_version_counts(instance: dg.DagsterInstance) -> None:
    say(instance, True, "v1", str(FIRST))
    say(instance, False, "v1", str(FIRST))

    assert Verdicts(instance).of(ASSET, CHECK, "v1", str(FIRST)) == FAILED


@pytest.mark.parametrize("evaluations_behind", [0, 200], ids=["in reach", "far back"])
def test_many_days_looked_up_at_once_are_what_each_is_by_itself(
    instance: dg.DagsterInstance, evaluations_behind: int
) -> None:
    days = [str(FIRST + timedelta(days=ahead)) for ahead in range(2 * FEW)]
    for day in days[1:]:
        say(instance, day != days[1], "v1", day)
    say(instance, True, "v2", days[2])
    say(instance, False, "v1", days[3])
    for _ in range(evaluations_behind):
        say(instance, True, "later", days[-1])
    asked, one_by_one = Verdicts(instance), Verdicts(instance)

    asked.look_up(ASSET, CHECK, {(day, version) for day in days for version in ("v1", "v2")})

    assert asked.of(ASSET, CHECK, "v1", days[0]) == NEVER
    assert asked.of(ASSET, CHECK, "v1", days[1]) == FAILED
    assert asked.of(ASSET, CHECK, "v2", days[2]) == asked.of(ASSET, CHECK, "v1", days[2]) == PASSED
    assert asked.of(ASSET, CHECK, "v1", days[3]) == FAILED  # the newest one
    for day in days:
        for version in ("v1", "v2"):
            assert asked.of(ASSET, CHECK, version, day) == one_by_one.of(ASSET, CHECK, version, day)


def test_days_looked_up_at_once_are_asked_for_once(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [str(FIRST + timedelta(days=ahead)) for ahead in range(2 * FEW)]
    for day in days:
        say(instance, True, "v1", day)
    asked: list[Any] = []
    storage = instance.event_log_storage
    history = storage.get_asset_check_execution_history

    def count(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        return history(*arguments, **named)

    monkeypatch.setattr(storage, "get_asset_check_execution_history", count)
    verdicts = Verdicts(instance)
    verdicts.look_up(ASSET, CHECK, {(day, "v1") for day in days})

    assert [verdicts.of(ASSET, CHECK, "v1", day) for day in days] == [PASSED] * len(days)
    assert len(asked) == 1


def check_alone(found: dg.Definitions) -> dg.JobDefinition:
    job = found.resolve_implicit_global_asset_job_def()
    return job.get_subset(asset_selection=set(), asset_check_selection={dg.AssetCheckKey(ASSET, CHECK)})


def test_a_check_alone_is_about_the_day_that_it_is_launched_for(instance: dg.DagsterInstance) -> None:
    job = check_alone(definitions({"2025-01-09": 0}))

    result = job.execute_in_process(instance=instance, partition_key="2025-01-02")

    assert result.success
    assert Verdicts(instance).of(ASSET, CHECK, "v1", "2025-01-02") == PASSED


def causes(result: dg.ExecuteInProcessResult) -> str:
    [failure] = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    return str(error.cause.message if error and error.cause else error)


def test_a_check_alone_and_for_no_day_is_refused(instance: dg.DagsterInstance) -> None:
    result = check_alone(definitions({})).execute_in_process(instance=instance, raise_on_error=False)

    assert not result.success
    assert "a check of a daily asset was launched for no day" in causes(result)
    assert "remedy:   launch it with a partition" in causes(result)


def test_a_longer_range_is_split_into_runs_that_may_be() -> None:
    assert split_range(FIRST, FIRST) == [(FIRST, FIRST)]
    assert split_range(FIRST, date(2026, 1, 9)) == [
        (FIRST, date(2026, 1, 1)),
        (date(2026, 1, 2), date(2026, 1, 9)),
    ]


def test_a_run_over_more_days_than_one_may_hold_is_refused(instance: dg.DagsterInstance) -> None:
    assert run_range(instance, definitions({}), "2025-01-01", "2026-01-01").success  # 366 days

    result = run_range(instance, definitions({}), "2025-01-01", "2026-01-02")

    assert not result.success
    assert "found:    367 days, 2025-01-01 to 2026-01-02" in causes(result)
    assert "remedy:   launch a run for each year of the range" in causes(result)

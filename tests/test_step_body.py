"""A step that ends badly: an error of ours is read first, and a cancelled run is cancelled."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.execution.plan.objects import ErrorSource, StepFailureData
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.sql import DataFrame, SparkSession

from pipelines.steps.errors import DataError
from resources.expectations import Check, Subject, evaluate, expect
from resources.spark import Spark
from resources.spark_process import SparkLostError
from resources.step_body import step_body

TEXT = "scores is damaged\n  found:    3 rows\n  expected: 4 rows\n  remedy:   run it again"


def damaged() -> DataError:
    return DataError("scores is damaged", found="3 rows", expected="4 rows", remedy="run it again")


def failure_of(result: dg.ExecuteInProcessResult) -> StepFailureData:
    [event] = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data


def run(body: Callable[..., Any], **resources: Any) -> dg.ExecuteInProcessResult:
    asset = dg.asset(name="scores")(step_body(body))
    return dg.materialize([asset], resources=resources, raise_on_error=False)


# --- errors of ours -------------------------------------------------------------------------------


def test_our_text_comes_first() -> None:
    def body() -> None:
        raise damaged()

    failure = failure_of(run(body))

    assert failure.error is not None
    assert failure.error.message == f"resources.step_body.StepFailed: {TEXT}\n"
    assert failure.error.cause is None
    assert failure.error_display_string.startswith(failure.error.message)
    assert failure.user_failure_data is not None
    assert failure.user_failure_data.description == TEXT


def test_where_it_was_raised_and_what_caused_it_stay_below() -> None:
    def body() -> None:
        raise damaged() from OSError("disk full")

    error = failure_of(run(body)).error

    assert error is not None
    assert "raise damaged() from OSError" in error.stack[-1]
    assert error.cause is not None
    assert error.cause.message == "OSError: disk full\n"


def test_a_check_that_yields_its_results_is_framed_alike() -> None:
    spec = dg.AssetCheckSpec("is_whole", asset="scores")

    @dg.multi_asset_check(specs=[spec])
    @step_body
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        yield dg.AssetCheckResult(check_name="is_whole", asset_key="scores", passed=True)
        raise damaged()

    result = dg.Definitions(asset_checks=[checks]).resolve_implicit_global_asset_job_def()
    ran = result.execute_in_process(raise_on_error=False)

    assert [evaluation.passed for evaluation in ran.get_asset_check_evaluations()] == [True]
    assert failure_of(ran).error_display_string.startswith(f"resources.step_body.StepFailed: {TEXT}")


def test_another_error_is_shown_as_dagster_shows_it() -> None:
    def body() -> None:
        raise ValueError("a fault of ours")

    failure = failure_of(run(body))

    assert failure.error_source == ErrorSource.USER_CODE_ERROR
    assert failure.error is not None
    assert failure.error.cause is not None
    assert failure.error.cause.message == "ValueError: a fault of ours\n"


def test_a_lost_spark_may_be_tried_again() -> None:
    def body() -> None:
        raise SparkLostError("Spark's JVM died", found="exit status -9")

    with pytest.raises(dg.Failure) as raised:
        step_body(body)()
    assert raised.value.allow_retries


# --- a cancelled run ------------------------------------------------------------------------------


def go_on() -> None:
    """Some code lets no interrupt through."""


def fail_otherwise() -> None:
    raise Py4JError("An error occurred while calling o43.sc")


def fail_plainly() -> None:
    raise damaged()


def interrupt(context: dg.AssetExecutionContext) -> None:
    """What the UI's `terminate` comes to, in the process of the run."""
    context.instance.report_run_canceling(context.run)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("answer", [go_on, fail_otherwise, fail_plainly])
def test_a_cancelled_step_ends_as_interrupted_whatever_became_of_the_interrupt(
    answer: Callable[[], None],
) -> None:
    @dg.asset
    @step_body
    def scores(context: dg.AssetExecutionContext) -> None:
        try:
            interrupt(context)
            time.sleep(10)
        except KeyboardInterrupt:
            answer()

    @dg.asset
    def without_scores() -> None:
        raise ValueError("a step began after the run was cancelled")

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([scores, without_scores], instance=instance, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)

    assert run is not None
    assert run.status == dg.DagsterRunStatus.CANCELED
    failure = failure_of(result)
    assert failure.error_source == ErrorSource.INTERRUPT
    assert failure.error is not None
    assert "interrupted after 0 s of scores" in failure.error.message
    assert (failure.error.cause, failure.error.context) == (None, None)


def test_signals_are_handled_as_before_once_the_step_has_ended() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    step_body(go_on)()

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def count(rows: DataFrame) -> None:
    rows.count()


def to_pandas(rows: DataFrame) -> None:
    """Waits for the end of the job before it lets an interrupt through."""
    rows.toPandas()


def check(rows: DataFrame) -> None:
    """Great Expectations takes an error of Spark's for a check that failed, and goes on with the next."""
    positive = expect("ExpectColumnValuesToBeBetween", column="id", min_value=0)
    list(evaluate(dg.AssetKey("scores"), [Check("positive", "above 0", [positive])], rows, [Subject("v1")]))


@pytest.mark.slow
@pytest.mark.parametrize("work", [count, to_pandas, check])
def test_a_cancelled_step_waits_for_no_spark_job_and_leaves_spark_usable(
    spark: SparkSession, work: Callable[[DataFrame], None]
) -> None:
    def stand_still(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import time

        time.sleep(60)
        yield from batches

    @dg.asset
    @step_body
    def scores(context: dg.AssetExecutionContext, spark: Spark) -> None:
        rows = spark.session.range(2, numPartitions=1).mapInArrow(stand_still, "id long")
        tracker = spark.session.sparkContext.statusTracker()

        def interrupt_once_it_runs() -> None:
            while not tracker.getActiveStageIds():
                time.sleep(0.02)
            interrupt(context)

        threading.Thread(target=interrupt_once_it_runs, daemon=True).start()
        work(rows)

    began = time.monotonic()
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {"spark": Spark(master="local[2]")}
        result = dg.materialize([scores], resources=resources, instance=instance, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
        errors = [entry.user_message for entry in instance.all_logs(result.run_id) if int(entry.level) >= 40]

    assert run is not None
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert failure_of(result).error_source == ErrorSource.INTERRUPT
    assert not [error for error in errors if "Spark" in error]
    assert time.monotonic() - began < 40
    assert spark.range(3).count() == 3

"""Tells a run that lost its Spark from one whose asset failed: only the former is tried again.

To Dagster both are failed steps, and `dagster.yaml` says that a failed step is not tried again. Dagster
decides when it records that the run failed, by a tag of the run if it has one; resources are torn down just
before.
"""

import dagster as dg
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG

from resources.spark_process import SparkLostError

LOST_TAG = "audience_factory/spark_lost_in"
"""Id of the run that lost its Spark; a retry inherits its parent's tags, and with them this."""
_GONE = ("StatusCode.UNAVAILABLE", "INVALID_HANDLE.SESSION_NOT_FOUND", "INVALID_HANDLE.SESSION_CHANGED")
"""Words in errors of Spark Connect: the server is gone, or is another one that does not know the session."""


def request_retry(context: dg.InitResourceContext, loss: SparkLostError) -> None:
    """Says in the run's log that Spark was lost, and lets Dagster try the run again."""
    if context.log:
        context.log.error(str(loss))
    run, instance = context.run, context.instance
    if run and instance and not _is_retried_anyway(run):
        tags = {LOST_TAG: run.run_id, RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "true"}
        instance.add_run_tags(run.run_id, tags)


def forget_inherited_loss(context: dg.InitResourceContext) -> None:
    """Takes back the parent's tag in a retry: where an asset fails now, no third run follows."""
    run, instance = context.run, context.instance
    if run and instance and run.tags.get(LOST_TAG, run.run_id) != run.run_id:
        usual = str(instance.run_retries_retry_on_asset_or_op_failure).lower()
        instance.add_run_tags(run.run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: usual})


def find_lost_server(context: dg.InitResourceContext) -> SparkLostError | None:
    """Whether a step of the run failed because its Spark Connect server went away."""
    run, instance = context.run, context.instance
    if not (run and instance):
        return None
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        error = entry.dagster_event.step_failure_data.error if entry.dagster_event else None
        text = error.to_string() if error else ""
        if signs := [sign for sign in _GONE if sign in text]:
            return SparkLostError("Spark's Connect server went away", found=", ".join(signs))
    return None


def _is_retried_anyway(run: dg.DagsterRun) -> bool:
    return run.tags.get(RETRY_ON_ASSET_OR_OP_FAILURE_TAG) == "true" and LOST_TAG not in run.tags

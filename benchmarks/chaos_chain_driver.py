"""A process that runs the chain's jobs on request: JSON lines come in, JSON lines go out.

It keeps its Spark from job to job, and says when each step starts and ends, so that whoever started it can
strike at one. A step that an order names under "hold" waits at its start for a line.

    python -m benchmarks.chaos_chain_driver < orders > told

What does not belong here: what is struck at, and what then must hold.
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, TextIO

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from pyspark import SparkContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from benchmarks.chaos_clusters import FAST_JVM
from pipelines.definitions import build_definitions
from pipelines.steps.errors import AudienceFactoryError
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark

ERROR_LEVEL = 40
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
SPARK: dict[str, Any] = {
    "master": "local[2]",
    "driver_memory": "1g",
    "shuffle_partitions": 2,
    "conf": {"spark.ui.enabled": "false", "spark.driver.extraJavaOptions": FAST_JVM},
}


def main() -> None:
    out = _own_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `make demo`: Spark is stopped
    spark = Spark(**SPARK)
    try:
        spark.session.range(1).count()
        gateway: Any = SparkContext._gateway
        _tell(out, told="ready", jvm=gateway.proc.pid)
        while line := sys.stdin.readline():
            order = json.loads(line)
            _tell(out, told="answer", **_obey(order, out))
    finally:
        spark.stop()


def _own_output() -> TextIO:
    """Answers to whoever started this; Dagster's and Spark's words go where stderr goes."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return out


def _tell(out: TextIO, **message: Any) -> None:
    out.write(json.dumps(message) + "\n")


def _obey(order: Mapping[str, Any], out: TextIO) -> dict[str, Any]:
    try:
        if order["do"] == "run":
            return _run(order, out)
        if order["do"] == "publish":
            return _publish(order)
        return _promote(order)
    except AudienceFactoryError as error:
        return {"success": False, "error": str(error)}


# --- runs ------------------------------------------------------------------------------------------


def _run(order: Mapping[str, Any], out: TextIO) -> dict[str, Any]:
    """Runs a job, or materializes assets on their own, and says what came of it."""
    audiences, data = (Path(order["places"][name]) for name in ("audiences", "data"))
    definitions = build_definitions(audiences, data, {"spark": Spark(**SPARK)})
    with dg.DagsterInstance.from_config(order["places"]["home"]) as instance:
        run_id = str(uuid.uuid4())
        instance.add_event_listener(run_id, lambda entry: _listen(entry, out, order["hold"]))
        assets = [dg.AssetKey(asset.split("/")) for asset in order["assets"]]
        job = order["job"]
        resolved = (
            definitions.resolve_job_def(job) if job else definitions.resolve_implicit_global_asset_job_def()
        )
        result = resolved.execute_in_process(
            instance=instance,
            run_id=run_id,
            run_config=QUIET if job else None,
            asset_selection=assets or None,
            raise_on_error=False,
            **_days(order),
        )
        run = instance.get_run_by_id(run_id)
        return {
            "success": result.success,
            "error": _errors(instance, result),
            "tags": dict(run.tags) if run else {},
            "repaired": _repaired(result),
        }


def _days(order: Mapping[str, Any]) -> dict[str, Any]:
    """Asks by key, as the daily schedule asks for; or by range, as a backfill does."""
    first, last = order["first"], order["last"]
    if first is None:
        return {}
    if first == last:
        return {"partition_key": str(date.fromisoformat(first))}
    return {"tags": {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}}


def _listen(entry: dg.EventLogEntry, out: TextIO, hold: list[str]) -> None:
    event = entry.dagster_event
    if event is None or event.step_key is None:
        return
    if event.event_type == dg.DagsterEventType.STEP_START:
        _tell(out, told="start", step=event.step_key)
        if event.step_key in hold:
            sys.stdin.readline()
    elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
        _tell(out, told="end", step=event.step_key, seconds=event.step_success_data.duration_ms / 1000)
    elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
        _tell(out, told="end", step=event.step_key, seconds=None)


def _errors(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> str | None:
    """Problems in the run's log: why steps failed, failed checks that block, errors logged."""
    found = []
    for event in result.all_events:
        error = event.step_failure_data.error if event.is_step_failure else None
        while error:
            found.append(f"{event.step_key}: {error.message.strip()}")
            error = error.cause
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
            name = f"{check.asset_key.to_user_string()}:{check.check_name}"
            found.append(f"check {name} failed: {check.description or ''}")
    found += [e.user_message for e in instance.all_logs(result.run_id) if int(e.level) >= ERROR_LEVEL]
    return "\n".join(dict.fromkeys(found)) or None


def _repaired(result: dg.ExecuteInProcessResult) -> list[str]:
    """The damage that deliveries say they found."""
    materializations = [
        event.step_materialization_data.materialization for event in result.get_asset_materialization_events()
    ]
    values = [each.metadata.get("repaired") for each in materializations]
    return [text for value in values if isinstance(value, dg.JsonMetadataValue) for text in value.value or []]


# --- what others do meanwhile ----------------------------------------------------------------------


def _publish(order: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces a partition by altered rows, as another run would whose checks are still to come."""
    lake, table, key = Lake(root=f"{order['places']['data']}/lake"), order["table"], order["key"]
    before = lake.partition(table, key)
    after = lake.write(
        _altered(lake.read(Spark(**SPARK).session, table, [key])),
        table,
        by=["audience", "day"],
        keys=[key],
        sort=["segment", "device_id"] if table == "segments" else ["device_id"],
        properties=before.properties,
        made_from=lambda _: before.made_from,
    )
    return {"success": True, "error": None, "versions": [before.version, after[key].version]}


def _altered(rows: DataFrame) -> DataFrame:
    """Other probabilities, each in its range, and so other devices in each segment."""
    return rows.withColumn("probability", (F.lit(1) - F.col("probability")).cast("float"))


def _promote(order: Mapping[str, Any]) -> dict[str, Any]:
    """Makes another version serve: the one named, or any candidate's that does not serve."""
    models = ModelStore(root=f"{order['places']['data']}/models")
    audience, version = order["audience"], order["version"]
    if version is None:
        champion = models.current(audience, "champion").version
        candidates = [models.current(audience, name).version for name in ("logistic", "xgboost", "dnn")]
        version = next(candidate for candidate in candidates if candidate != champion)
    models.promote(audience, version, by_precision=[])
    return {"success": True, "error": None, "versions": [version]}


if __name__ == "__main__":
    main()

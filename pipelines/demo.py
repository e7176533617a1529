"""`make demo`: the whole chain through Dagster, on a simulated world or on the retail log, and its report.

Every step is the one that the UI, the schedules and backfills run; nothing here computes a result
except the report's comparison with what really happened after the scored day.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import product
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    MAX_RETRIES_TAG,
    PARENT_RUN_ID_TAG,
)
from dagster._core.workspace.load import location_origins_from_yaml_paths
from pyspark.sql import SparkSession

from assets.partitions import keys_of, split_range
from assets.training_data import read_training_data
from pipelines.behaviour_gain import QUICK_MODELS, gains_table, knows_behaviour, measure_gains
from pipelines.demo_lock import lock_demo
from pipelines.simulate import world_dir
from pipelines.simulated_world.config import WorldConfig
from pipelines.simulated_world.truth import rank_auc, true_propensities
from pipelines.simulated_world.world import plan_world, simulate_world
from pipelines.steps.config.audience import Audience
from pipelines.steps.config.label_values import conversion_predicate
from pipelines.steps.config.project import Project, load_project
from pipelines.steps.errors import AudienceFactoryError, DataError
from pipelines.steps.labels.as_of_days import label_days
from pipelines.steps.labels.training_rows import TRAIN, VALIDATION
from pipelines.steps.labels.training_set import label_devices
from pipelines.steps.models.metrics import comparison_table
from pipelines.steps.promotion.candidate_models import CANDIDATES, Measured
from pipelines.steps.promotion.promises import measure_promises, top_segments
from pipelines.steps.targeting.segments import measure_segments
from resources.destinations import Destinations
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark

RETAIL_SCORED_DAY = date(2011, 11, 8)
"""The newest day whose whole horizon lies within the transactions, so that the segment can be measured."""
DATA = {"simulated": Path("data"), "retail": Path("data/online_retail")}
RUN_TAG = "audience_factory/demo"
RUN_TAGS = {
    RUN_TAG: "true",
    MAX_RETRIES_TAG: "0",
}  # the daemon, where one runs, leaves a failed run to the demo
WORKSPACE = Path(__file__).parent.parent / "workspace.yaml"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Demo:
    """What a demo runs on.

    Attributes:
        project: Its configuration.
        data: Directory of lake, models and deliveries.
        last_day: The last day of events to use.
        scored_day: The newest day whose whole horizon lies within them: its scores are compared with what
            happened.
        newest_day: A day to score and deliver as the daily schedule does; None where events ended years ago.
        world: The simulated world, whose chances of a purchase are known; None for real events.
        ui_command: What opens the UI on this history.
    """

    project: Project
    data: Path
    last_day: date
    scored_day: date
    newest_day: date | None
    world: WorldConfig | None
    ui_command: str


def main(arguments: Sequence[str] | None = None, today: date | None = None) -> int:
    """Runs the demo asked for; returns the process's exit status.

    Args:
        arguments: Of the command line.
        today: The day it is; else that of the clock, in UTC.
    """
    started, options = time.monotonic(), parse(arguments)
    try:
        with lock_demo(DATA[options.world]):
            demo = prepare(options, today or datetime.now(UTC).date())
            _run(demo)
    except AudienceFactoryError as error:
        sys.stderr.write(f"\nerror: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; the same command starts again, nothing half-written is used\n")
        return 130
    _say(f"\nDone in {time.monotonic() - started:.0f} s. To look at it in the UI: {demo.ui_command}")
    return 0


def _run(demo: Demo) -> None:
    _say(f"Dagster keeps the history in {os.environ['DAGSTER_HOME']}")
    # Started here, so that all runs share one JVM: a run stops only a session that it started.
    spark = Spark.from_environment(driver_memory="3g")
    try:
        session = spark.session
        with dg.DagsterInstance.get() as instance:
            _close_killed_runs(instance)
            _run_chain(demo, instance)
        _report(demo, session)
    finally:
        spark.stop()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo", description="Runs the whole chain and prints what came of it."
    )
    worlds = parser.add_subparsers(dest="world", required=True)
    simulated = worlds.add_parser("simulated", help="on a simulated world of mobile SDK events")
    usual = WorldConfig()
    simulated.add_argument(
        "--devices", type=int, default=usual.devices, help="devices (default: %(default)s)"
    )
    simulated.add_argument(
        "--events-per-day", type=int, default=usual.events_per_day, help="raw events (default: %(default)s)"
    )
    simulated.add_argument("--seed", type=int, default=usual.seed, help="of the world (default: %(default)s)")
    retail = worlds.add_parser("retail", help="on the transactions of a real shop")
    retail.add_argument("--data", type=Path, required=True, help="path of online_retail/events.parquet")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace, today: date) -> Demo:
    """Makes the input and sets what `pipelines.definitions` reads."""
    if options.world == "simulated":
        return _prepare_simulated(options, today)
    if not options.data.is_file():
        raise DataError(
            f"there is no file {options.data}",
            found="nothing",
            expected="the events.parquet of UCI Online Retail",
            remedy="give its path: make demo-retail DATA=path/to/events.parquet",
        )
    os.environ["RETAIL_EVENTS"] = str(options.data.absolute())
    project = _bind(Path("examples/online_retail"), DATA["retail"], Path("dagster_home/online_retail"))
    return Demo(
        project,
        DATA["retail"].absolute(),
        last_day=RETAIL_SCORED_DAY + _longest_horizon(project),
        scored_day=RETAIL_SCORED_DAY,
        newest_day=None,
        world=None,
        ui_command=f"make ui-retail DATA={options.data}",
    )


def _prepare_simulated(options: argparse.Namespace, today: date) -> Demo:
    """The world until yesterday: a new one, or that of a former demo gone on."""
    world = plan_world(
        world_dir(),
        today - timedelta(days=1),
        devices=options.devices,
        events_per_day=options.events_per_day,
        seed=options.seed,
    )
    simulate_world(world, world_dir(), _say)
    project = _bind(Path("audiences"), DATA["simulated"], Path("dagster_home"))
    return Demo(
        project,
        DATA["simulated"].absolute(),
        last_day=world.last_day,
        scored_day=world.last_day - _longest_horizon(project),
        newest_day=world.last_day,
        world=world,
        ui_command="make ui",
    )


def _bind(audiences: Path, data: Path, home: Path) -> Project:
    os.environ["AUDIENCES_DIR"], os.environ["DATA_DIR"] = str(audiences), str(data)
    os.environ.setdefault("DAGSTER_HOME", str(home.absolute()))
    _make_dagster_home(Path(os.environ["DAGSTER_HOME"]))
    return load_project(audiences)


def _longest_horizon(project: Project) -> timedelta:
    return timedelta(days=max(audience.horizon_days for audience in project.audiences))


def _make_dagster_home(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").symlink_to(Path("dagster_instance.yaml").absolute())


def _close_killed_runs(instance: dg.DagsterInstance) -> None:
    """A demo that was killed leaves its run open for ever; nothing else would close it."""
    unfinished = dg.RunsFilter(
        tags={RUN_TAG: "true"}, statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING]
    )
    for run in instance.get_runs(unfinished):
        if PARENT_RUN_ID_TAG in run.tags:  # started again in the UI, which inherits the demo's tag
            continue
        instance.report_run_canceled(run, message="the demo that started this run was killed")


def _run_chain(demo: Demo, instance: dg.DagsterInstance) -> None:
    from pipelines.definitions import defs  # reads the environment that prepare has set

    source = demo.project.fields.events
    chain = Chain(defs, instance)
    for first, last in split_range(source.first_day, demo.last_day):
        chain.run("ingestion_job", f"events of {first} to {last}", first=first, last=last)
    chain.run("training_job", "features, vocabulary, training set, three models, champion")
    for day in _days_to_deliver(demo):
        chain.run("daily_job", f"{day}, from events to delivery", first=day, last=day)


def _days_to_deliver(demo: Demo) -> list[date]:
    return [day for day in (demo.scored_day, demo.newest_day) if day]


@cache
def _repository() -> RemoteRepositoryOrigin:
    """Where the UI finds the jobs: it lists a run below a job only if the run is of that job's code location.

    Dagster gives no public way to say so of a run that it does not launch itself.
    """
    [location] = location_origins_from_yaml_paths([str(WORKSPACE)])
    return RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME)


class Chain:
    """Runs jobs in process, one after another, and prints each step as it ends."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self._definitions = definitions
        self._instance = instance

    def run(self, job: str, title: str, *, first: date | None = None, last: date | None = None) -> None:
        """Runs a job, over a range of days where it is partitioned.

        Raises:
            DataError: A step failed, or a blocking check did.
        """
        _say(f"\n{job}: {title}")
        definition, tags = self._definitions.resolve_job_def(job), dict(RUN_TAGS)
        if first and last:
            tags |= {ASSET_PARTITION_RANGE_START_TAG: str(first), ASSET_PARTITION_RANGE_END_TAG: str(last)}
        run = self._instance.create_run_for_job(
            definition,
            run_config=QUIET,
            tags={**definition.run_tags, **tags},
            remote_job_origin=_repository().get_job_origin(job),
        )
        problems: list[str] = []
        self._instance.add_event_listener(run.run_id, lambda entry: _show(entry, problems))
        result = execute_run(InMemoryJob(definition), run, self._instance)
        if not result.success:
            raise DataError(
                f"{job} failed (run {run.run_id})",
                found="\n".join(problems) or "no step said why",
                expected="every step and every blocking check to pass",
                remedy="look at the run in the UI; the same command starts again",
            )


def _show(entry: dg.EventLogEntry, problems: list[str]) -> None:
    """One line per step that ends, with its seconds; what went wrong is kept."""
    event = entry.dagster_event
    if event is None:
        return
    if event.event_type == dg.DagsterEventType.STEP_START:
        _say(f"  {event.step_key} …", end="\r")
    elif event.event_type == dg.DagsterEventType.STEP_SUCCESS:
        _say(f"  {event.step_key}  {event.step_success_data.duration_ms / 1000:.1f} s")
    elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
        failure = event.step_failure_data
        explained = failure.user_failure_data.description if failure.user_failure_data else None
        causes = [failure.error] if failure.error else []
        while causes and causes[-1].cause:
            causes.append(causes[-1].cause)
        problems.append(
            f"{event.step_key}: {explained or (causes[-1].message.strip() if causes else 'failed')}"
        )
    elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        verdict = event.asset_check_evaluation_data
        if not verdict.passed:
            name = f"{verdict.asset_key.to_user_string()}:{verdict.check_name}"
            line = f"check {name} failed: {verdict.description}"
            _say(f"  ! {line}")
            problems.append(line)


def _report(demo: Demo, session: SparkSession) -> None:
    lake = Lake(root=str(demo.data / "lake"))
    models = ModelStore(root=str(demo.data / "models"))
    for audience in demo.project.audiences:
        champion = models.current(audience.name, "champion")
        records = [models.current(audience.name, name) for name in CANDIDATES]
        measured = {r.model: Measured.from_dict(r.properties["metrics"]) for r in records}
        _say(f"\n== {audience.name}: models on the test devices ==\n")
        _say(comparison_table({name: m.test for name, m in measured.items()}))
        name = champion.properties["model"]
        _say(f"\nchampion (best on the validation rows): {name}, version {champion.version}")
        devices = _report_outcome(demo, audience, lake, session)
        _report_gain(demo, audience, lake, models, devices)
        _report_deliveries(demo, audience)


def _report_outcome(demo: Demo, audience: Audience, lake: Lake, session: SparkSession) -> pd.DataFrame:
    """Tells what became of the scored day's devices by the end of the horizon; returns each one's label."""
    key = keys_of([demo.scored_day], audience.name)
    outcome_days = label_days(demo.scored_day, audience.horizon_days)
    events = lake.read(session, "app_events", keys_of(outcome_days))
    predictions = lake.read(session, "predictions", key)
    predicate = conversion_predicate(audience, dict(events.dtypes))
    labelled = label_devices(predictions, events, predicate, audience.horizon_days).cache()
    rows = labelled.select("device_id", "probability", "label").toPandas()
    reached = rank_auc(rows["probability"].to_numpy(), rows["label"].to_numpy() == 1)
    _say(
        f"\n== {audience.name}: {len(rows):,} devices scored on {demo.scored_day}, "
        f"{audience.horizon_days} days later ({rows['label'].mean():.2%} converted) =="
    )
    if demo.world:
        days = (demo.scored_day - demo.world.first_day).days + 1
        known = rows.merge(true_propensities(demo.world, days, audience.horizon_days), on="device_id")
        bought = known["label"].to_numpy() == 1
        attainable = rank_auc(known["propensity"].to_numpy(), bought)
        share = (reached - 0.5) / (attainable - 0.5)
        _say(
            f"\nAUC reached {reached:.4f}, attainable {attainable:.4f} (by the true propensities): "
            f"{share:.1%} of the way from chance\n"
            f"attainable by interests alone {rank_auc(known['by_interests'].to_numpy(), bought):.4f}, "
            f"by what a device is and when it bought cars {rank_auc(known['by_past'].to_numpy(), bought):.4f}"
        )
    else:
        _say(f"\nAUC reached {reached:.4f}")
    outcomes = measure_segments(lake.read(session, "segments", key), labelled)
    table = pd.DataFrame(
        [(o.segment, o.devices, o.converted, o.precision, o.lift) for o in outcomes],
        columns=["segment", "devices", "converted", "measured precision", "lift"],
    )
    _say(table.to_markdown(index=False, floatfmt=".3f", intfmt=","))
    _say("\npromised and happened, with the 95 % interval of what happened:\n")
    _say(_promises(rows, lake.read(session, "segments", key).select("segment", "device_id").toPandas()))
    return rows


def _promises(scored: pd.DataFrame, segments: pd.DataFrame) -> str:
    """The mean probability of each segment beside what happened.

    Args:
        scored: `device_id`, `probability`, `label` of all scored devices.
        segments: `segment`, `device_id`.
    """
    chosen = {
        str(name): scored["device_id"].isin(own).to_numpy()
        for name, own in segments.groupby("segment")["device_id"]
    }
    probabilities = scored["probability"].to_numpy()
    promises = measure_promises(
        scored["label"].to_numpy(), probabilities, {**chosen, **top_segments(probabilities)}
    )
    return promises.to_markdown()


def _report_gain(
    demo: Demo, audience: Audience, lake: Lake, models: ModelStore, devices: pd.DataFrame
) -> None:
    """Tells what models reach on the scored day by tokens alone, and what they reach with behaviour."""
    data = read_training_data(audience, lake, models)
    if not knows_behaviour(data.vocabulary):
        return
    scorers = {
        name: models.load(audience.name, name, models.current(audience.name, name).version)
        for name in QUICK_MODELS
    }
    files = lake.snapshot("feature_tokens", keys_of([demo.scored_day])).files()
    later = pq.read_table(files, columns=["device_id", *data.vocabulary.columns])
    labels = devices.set_index("device_id")["label"].reindex(later.column("device_id").to_pylist())
    rows = data.files.read([TRAIN, VALIDATION])
    gains = measure_gains(rows, data.vocabulary, scorers, later, np.asarray(labels == 1))
    _say(f"\n== {audience.name}: what behaviour adds, on the same {len(devices):,} devices ==\n")
    _say(gains_table(gains))


def _report_deliveries(demo: Demo, audience: Audience) -> None:
    destinations = Destinations(root=str(demo.data))
    _say("\ndelivered:")
    for day, destination in product(_days_to_deliver(demo), audience.destinations):
        for segment in audience.segments:
            place = destinations.place(audience.name, segment.name, str(day), destination)
            manifest = destinations.published(place)
            if manifest:
                _say(f"  {place / manifest.file}  ({manifest.rows:,} devices)")


def _say(line: str, end: str = "\n") -> None:
    sys.stdout.write(f"{line}{end}" if end == "\n" or sys.stdout.isatty() else "")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl-C: Spark is stopped
    sys.exit(main())

"""The chain run on an event log as its user would run it, in a place of its own, and what its models say.

What happened after the scored day lies in another lake than what the chain sees, so that nothing of it can
get into a feature, a label or an as-of day.

What does not belong here: the peers, and how they compare.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import yaml
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from benchmarks.events_script import Log
from pipelines.steps.config.audience import Audience, RollingDays
from pipelines.steps.config.fields import FIELDS_FILE
from pipelines.steps.config.label_values import conversion_predicate
from pipelines.steps.config.project import Project, load_project
from pipelines.steps.errors import ConfigError, DataError
from pipelines.steps.events.app_events import read_raw_events
from pipelines.steps.events.event_names import named_columns, quoted
from pipelines.steps.events.event_rows import MISTYPED
from pipelines.steps.labels.as_of_days import label_days, matured_as_of_days
from pipelines.steps.labels.training_set import label_devices
from pipelines.steps.scoring.predictions import score_files
from resources.lake import Lake
from resources.model_log import CHALLENGER, CHAMPION
from resources.model_store import ModelStore

ROOT = Path(__file__).parent.parent
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def say(message: object) -> None:
    print(message, flush=True)


@dataclass
class Clock:
    """Seconds of each part, in the order in which they ran; of what runs several times, all of them."""

    parts: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)

    def add(self, part: str, seconds: float) -> None:
        self.parts.setdefault(part, []).append(round(seconds, 2))


# --- the project's files ---------------------------------------------------------------------------


def with_values(text: str, values: Mapping[str, object]) -> str:
    """A YAML document with some values replaced or added, all others as they were written.

    Args:
        text: The document, a mapping.
        values: Key path, such as "training.seed" → value.
    """
    root = yaml.compose(text)
    for path, value in values.items():
        _put(root, path.split("."), yaml.compose(yaml.safe_dump(value)))
    return str(yaml.serialize(root))


def _put(mapping: Any, keys: Sequence[str], value: yaml.Node | None) -> None:
    key, *below = keys
    place = next((at for at, (k, _) in enumerate(mapping.value) if k.value == key), None)
    if place is None:
        mapping.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", key), yaml.compose("{}")))
        place = -1
    if below:
        _put(mapping.value[place][1], below, value)
    else:
        mapping.value[place] = (mapping.value[place][0], value)


def copy_project(
    source: Path,
    directory: Path,
    events: Path,
    *,
    scored: date,
    training: int = 0,
    without: Sequence[str] = (),
    money: str | None = None,
) -> Project:
    """A copy of a project that reads another log, and knows nothing after the scored day.

    Args:
        source: The project.
        directory: Where the copy goes.
        events: What its `events.path` becomes.
        scored: Listed as-of days whose horizon is not over by then are left out.
        training: Added to each audience's training seed.
        without: Groups of behaviour that are turned off.
        money: SQL of what becomes a measure where the project declares none: what a peer is told, its user
            would say, too.

    Raises:
        ConfigError: The project is wrong, or its events end before the scored day.
        DataError: No listed as-of day of an audience has matured by then.
    """
    shutil.copytree(source, directory)
    fields = directory / FIELDS_FILE
    if fields.is_file():
        values: dict[str, object] = {"events.path": str(events.absolute())}
        fields.write_text(with_values(fields.read_text(), values))
        project = load_project(directory)
        if without:
            values["behaviour.without"] = list(without)
        if money and not project.fields.measures:
            values["measures.money.sql"] = money
        fields.write_text(with_values(fields.read_text(), values))
    else:
        project = load_project(directory)  # says what is missing
    for audience in project.audiences:
        changed: dict[str, object] = {"training.seed": audience.training.seed + training}
        if not isinstance(audience.as_of_days, RollingDays):
            changed["as_of_days"] = matured_days(audience, scored)
        audience.file.write_text(with_values(audience.file.read_text(), changed))
    return load_project(directory)


def matured_days(audience: Audience, scored: date) -> list[date]:
    """The listed as-of days whose labels are complete on the scored day.

    Raises:
        DataError: There is none.
    """
    listed = () if isinstance(audience.as_of_days, RollingDays) else audience.as_of_days
    matured = [day for day in listed if day + timedelta(days=audience.horizon_days) <= scored]
    if not matured:
        raise DataError(
            f"{audience.name}: there is nothing to train on by {scored}",
            found=f"as-of days {', '.join(map(str, listed))}, each with a horizon of "
            f"{audience.horizon_days} days",
            expected="an as-of day whose horizon is over by the scored day",
            remedy="score a later day, or name earlier as-of days",
        )
    return matured


def require_outcome(project: Project, scored: date) -> None:
    """Refuses a scored day without a whole window before it, or a whole horizon after it.

    Raises:
        ConfigError: The project's days do not hold them.
    """
    source = project.fields.events
    needed = scored + timedelta(days=max(audience.horizon_days for audience in project.audiences))
    if not source.first_day <= scored or (source.last_day and needed > source.last_day):
        raise ConfigError(
            "what happens after the scored day is not in the project's days",
            found=f"--scored {scored}, events of {source.first_day} to {source.last_day or 'now on'}",
            expected=f"a scored day with the longest horizon, which ends on {needed}, within these days",
            remedy="score another day, or correct events.first_day and events.last_day of fields.yaml",
        )


# --- runs ------------------------------------------------------------------------------------------


class Place:
    """A project's own DATA_DIR and DAGSTER_HOME, and the runs in it."""

    def __init__(self, root: Path, clock: Clock, title: str) -> None:
        self.data = root / "data"
        self.home = root / "home"
        self.home.mkdir(parents=True)
        shutil.copy(ROOT / "dagster_instance.yaml", self.home / "dagster.yaml")
        self._clock = clock
        self._title = title

    @property
    def lake(self) -> Lake:
        return Lake(root=str(self.data / "lake"))

    def models(self, training: int) -> ModelStore:
        """Models of one training: each begins without a former champion."""
        return ModelStore(root=str(self.data / f"models-{training}"))

    def take_lake_of(self, other: "Place") -> None:
        """Begins with all that another place's lake holds; what is written here is not seen there."""
        shutil.copytree(other.data / "lake", self.data / "lake", copy_function=os.link)

    def run(
        self,
        project: Project,
        job: str,
        *,
        first: date | None = None,
        last: date | None = None,
        training: int = 0,
        assets: Sequence[str] = (),
        needed: bool = True,
    ) -> str | None:
        """Runs a job to its end, and says so step by step.

        Args:
            project: Whose job.
            job: Its name.
            first: Of the days that it is for.
            last: Of them.
            training: Whose models.
            assets: Only these of the job's.
            needed: Whether nothing can go on where it fails.

        Returns:
            Why it failed, where it did.

        Raises:
            DataError: It failed and is needed.
        """
        from pipelines.definitions import build_definitions

        days = f" {first}" + (f" to {last}" if last != first else "") if first else ""
        say(f"\n{self._title}: {job}{days}" + (f", training {training}" if training else ""))
        definitions = build_definitions(project.directory, self.data, {"models": self.models(training)})
        tags = {}
        if first and last:
            tags = {ASSET_PARTITION_RANGE_START_TAG: str(first), ASSET_PARTITION_RANGE_END_TAG: str(last)}
        problems: list[str] = []
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            run_id = str(uuid.uuid4())
            instance.add_event_listener(run_id, lambda entry: self._note(entry, problems))
            with self._clock.timing(f"{self._title}: {job}"):
                result = definitions.resolve_job_def(job).execute_in_process(
                    instance=instance,
                    run_id=run_id,
                    run_config=QUIET,
                    tags=tags,
                    asset_selection=[dg.AssetKey(asset.split("/")) for asset in assets] or None,
                    raise_on_error=False,
                )
        if result.success:
            return None
        found = "\n".join(problems) or "no step said why"
        if needed:
            raise DataError(
                f"{self._title}: {job}{days} failed",
                found=found,
                expected="every step and every blocking check to pass",
                remedy="correct the project as the step says, and run the benchmark again",
            )
        say(f"  ! {job} failed: {found}")
        return found

    def _note(self, entry: dg.EventLogEntry, problems: list[str]) -> None:
        event = entry.dagster_event
        if event is None:
            return
        if event.event_type == dg.DagsterEventType.STEP_SUCCESS:
            seconds = event.step_success_data.duration_ms / 1000
            say(f"  {event.step_key}  {seconds:.1f} s")
            self._clock.add(f"{self._title}: {event.step_key}", seconds)
        elif event.event_type == dg.DagsterEventType.STEP_FAILURE:
            error = event.step_failure_data.error
            while error and error.cause:
                error = error.cause
            problems.append(f"{event.step_key}: {error.message.strip() if error else 'failed'}")
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            verdict = event.asset_check_evaluation_data
            if not verdict.passed and verdict.severity == dg.AssetCheckSeverity.ERROR:
                name = f"{verdict.asset_key.to_user_string()}:{verdict.check_name}"
                problems.append(f"check {name} failed: {verdict.description}")


# --- the chain -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """The models of one training of one audience.

    Attributes:
        probabilities: Model → float32 [devices], in the order of the devices.
        devices: [devices], sorted.
        champion: What the champion is; None where none may serve.
        thresholds: Model → segment → its cut, or None where no cut reached the precision.
        problem: Why the training or the scored day's run failed, where it did.
    """

    probabilities: Mapping[str, Any]
    devices: Any
    champion: str | None
    thresholds: Mapping[str, Mapping[str, float | None]]
    problem: str | None


def ingest_past(place: Place, project: Project, scored: date) -> None:
    """The events up to the scored day."""
    from assets.partitions import split_range

    for first, last in split_range(project.fields.events.first_day, scored):
        place.run(project, "ingestion_job", first=first, last=last)


def make_features(place: Place, project: Project) -> None:
    """The features of every as-of day, from the events that are there."""
    known = [date.fromisoformat(key) for key in place.lake.partition_keys("app_events")]
    window = project.fields.window_days
    as_of_days = {day for a in project.audiences for day in matured_as_of_days(a, known, window)}
    for day in sorted(as_of_days):
        place.run(project, "features_job", first=day, last=day)


def train_and_score(
    place: Place, project: Project, scored: date, training: int, spark: SparkSession
) -> dict[str, Trained]:
    """One training, the first with the day's own run to the delivery; all its models score the day.

    Returns:
        Audience → its models.
    """
    problem = place.run(project, "training_job", training=training, needed=False)
    if training == 0:
        failed = place.run(project, "daily_job", first=scored, last=scored, needed=False)
        problem = "\n".join(text for text in (problem, failed) if text) or None
        if str(scored) not in place.lake.partition_keys("feature_tokens"):
            place.run(project, "features_job", first=scored, last=scored)
    store = place.models(training)
    records = {
        audience.name: {
            model: store.current(audience.name, model)
            for model in store.models(audience.name)
            if model != CHALLENGER
        }
        for audience in project.audiences
        if audience.name in store.audiences()
    }
    bundles = {f"{name}/{m}": store.bundle_ref(r) for name, own in records.items() for m, r in own.items()}
    if not bundles:
        raise DataError(
            f"training {training} made no model at all",
            found=problem or "no step said why",
            expected="a model of at least one audience",
            remedy="correct the project as the step says, and run the benchmark again",
        )
    scores = score_files(spark, place.lake.files("feature_tokens", [str(scored)]), bundles).toPandas()
    scores = scores.sort_values("device_id")
    trained = {}
    for name, own in records.items():
        of_model = {model: scores[scores["audience"] == f"{name}/{model}"] for model in own}
        champion = own.get(CHAMPION)
        trained[name] = Trained(
            {model: rows["probability"].to_numpy() for model, rows in of_model.items()},
            next(iter(of_model.values()))["device_id"].to_numpy(dtype=str),
            str(champion.properties.get("model", CHAMPION)) if champion else None,
            {model: dict(record.properties.get("thresholds", {})) for model, record in own.items()},
            problem,
        )
    return trained


# --- what happened, and the raw log ----------------------------------------------------------------


def ingest_outcome(place: Place, project: Project, scored: date) -> None:
    """The events after the scored day, for labels alone."""
    horizon = max(audience.horizon_days for audience in project.audiences)
    first, last = scored + timedelta(days=1), scored + timedelta(days=horizon)
    place.run(project, "ingestion_job", first=first, last=last, assets=["app_events"])


def outcome_of(
    chain: Place, outcome: Place, audience: Audience, scored: date, spark: SparkSession
) -> pd.DataFrame:
    """The outcome of the horizon by the chain's own labels: `device_id` and `label`, in order."""
    tokens = chain.lake.read(spark, "feature_tokens", [str(scored)]).select("device_id", "day")
    keys = [str(day) for day in label_days(scored, audience.horizon_days)]
    events = outcome.lake.read(spark, "app_events", keys)
    predicate = conversion_predicate(audience, dict(events.dtypes))
    labelled = label_devices(tokens, events, predicate, audience.horizon_days).toPandas()
    return labelled.sort_values("device_id").reset_index(drop=True)[["device_id", "label"]]


def raw_events(project: Project, scored: date, spark: SparkSession) -> DataFrame:
    """The raw rows up to the scored day that say who and when, each once, rejected ones among them."""
    source = project.fields.events
    days = [source.first_day + timedelta(days=n) for n in range((scored - source.first_day).days + 1)]
    raw = read_raw_events(spark, source, days, named_columns(project)).drop(MISTYPED)
    known = raw.where("device_id is not null and device_id <> '' and event_time is not null")
    # Spark tells maps apart in no way: such columns, which nobody can count by, go.
    return known.drop(*[name for name, kind in raw.dtypes if "map<" in kind]).dropDuplicates()


def script_columns(raw: DataFrame, category: str | None, money: str | None) -> DataFrame:
    """The raw rows with what the script counts, `category`, and what it sums up, `money`.

    Raises:
        ConfigError: They cannot be made of the events.
    """
    count_by = F.col(quoted(category)).cast("string") if category else F.lit(None).cast("string")
    amount = F.expr(f"cast({money} as double)") if money else F.lit(1.0)
    try:
        return raw.withColumns({"script:category": count_by, "script:money": amount})
    except (AnalysisException, ParseException) as error:
        raise ConfigError(
            "the script cannot read its columns from the events",
            found=f"--category {category} --money {money}: {str(error).splitlines()[0]}",
            expected=f"a column, and Spark SQL that is a number, of {', '.join(raw.columns)}",
            remedy="correct --category or --money",
        ) from error


def log_of(rows: DataFrame, audience: Audience, window_days: int) -> Log:
    """The raw log as the script reads it, each event with what the audience's label says of it.

    Args:
        rows: Of `script_columns`.
        audience: Whose label.
        window_days: The look-back.
    """
    predicate = conversion_predicate(audience, dict(rows.dtypes))
    events = rows.select(
        "device_id",
        "event_time",
        F.col("`script:category`").alias("category"),
        F.col("`script:money`").alias("money"),
        F.coalesce(F.expr(predicate), F.lit(False)).alias("converts"),
    ).toPandas()
    events["event_time"] = pd.to_datetime(events["event_time"]).dt.tz_localize(None)
    events["category"] = events["category"].astype("category")
    return Log(events, window_days, audience.horizon_days)

"""A tiny project, as a user would write one: YAML files, and two weeks of events of 300 devices.

It is small enough that the whole chain runs in a minute, and has what the real ones have: two
audiences, learnable labels, dirt of every kind that is rejected, events that arrive after midnight.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from pyspark.sql import SparkSession

from pipelines.definitions import build_definitions
from resources.lake import Lake
from resources.model_store import ModelStore
from resources.spark import Spark

FIRST_DAY, LAST_DAY = date(2025, 3, 1), date(2025, 3, 14)
AS_OF_DAYS = (date(2025, 3, 5), date(2025, 3, 8))
SCORED_DAY = date(2025, 3, 11)
"""The newest day whose horizon lies within the events."""
WINDOW_DAYS, HORIZON_DAYS = 3, 3
AUDIENCES = ("bike_buyers", "car_buyers")
SIGNALS = ("car_pages", *AUDIENCES)
DEVICES = 300
MAX_LATE_HOURS = 2
PYTHON_LOGS = yaml.safe_load((Path(__file__).parent.parent / "dagster_instance.yaml").read_text())[
    "python_logs"
]
"""What the run's log shows of the domain's words, as a user has it."""

SCHEMA = pa.schema(
    [
        ("device_id", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("received_at", pa.timestamp("us", tz="UTC")),
        ("event_name", pa.string()),
        ("product", pa.string()),
        ("app_package", pa.string()),
        ("device_model", pa.string()),
        ("device_name", pa.string()),
    ]
)

FIELDS = """
    events:
      path: {events}/day={{day}}
      id_column: device_id
      id_normalizer: lower
      time_column: event_time
      arrival_column: received_at
      max_late_hours: {max_late_hours}
      filters:
        not_emulator: coalesce(device_model, '') not like 'sdk_gphone%'
      first_day: {first_day}
      last_day: {last_day}
    window_days: {window_days}
    fields:
      apps: {{column: app_package, kind: multi, normalizer: package, min_devices: 2}}
      device_model: {{column: device_model, kind: single, normalizer: device_model, min_devices: 2}}
      device_name: {{column: device_name, kind: single, normalizer: device_name, min_devices: 2}}
    measures:
      name_length: {{sql: length(app_package)}}
    signals:
      car_pages: {{where: app_package like 'com.cars.%'}}
    """

CAR_BUYERS = """
    label: {{event: {{event_name: purchase, product: car}}}}
    horizon_days: {horizon_days}
    as_of_days: {as_of_days}
    training: {{max_epochs: 6, promotion_fraction: 0.2, test_fraction: 0.1}}
    segments:
      - {{name: top_fifth, top_fraction: 0.2}}
      - {{name: best_30, size: 30}}
    deliver_to:
      - {{type: folder, path: deliveries, format: csv}}
    """

BIKE_BUYERS = """
    label:
      where: event_name = 'purchase' and product in ('bike', 'e-bike')
    horizon_days: {horizon_days}
    as_of_days: {as_of_days}
    training: {{max_epochs: 6, promotion_fraction: 0.2, test_fraction: 0.1}}
    segments:
      - {{name: best_25, size: 25}}
    deliver_to:
      - {{type: folder, path: deliveries, format: parquet}}
    """


@dataclass(frozen=True)
class SmallProject:
    """The project's folders, and what a right chain makes of its events.

    Attributes:
        audiences_dir: Its YAML files.
        data_dir: Its lake, models and deliveries.
        accepted: The events to accept, each once: the schema's columns and `day`.
        raw_rows: Raw rows of all days together.
        duplicates: Raw rows that repeat an accepted one.
        rejected: Reason → raw rows.
    """

    audiences_dir: Path
    data_dir: Path
    accepted: pd.DataFrame
    raw_rows: int
    duplicates: int
    rejected: Mapping[str, int]

    @property
    def lake(self) -> Lake:
        return Lake(root=str(self.data_dir / "lake"))

    @property
    def models(self) -> ModelStore:
        return ModelStore(root=str(self.data_dir / "models"))

    def definitions(self, **resource_overrides: Any) -> dg.Definitions:
        """The project, bound; on the tests' Spark session, whose settings stay as they are."""
        spark = Spark(master="local[2]", shuffle_partitions=2)
        return build_definitions(self.audiences_dir, self.data_dir, {"spark": spark, **resource_overrides})

    def copied_to(self, data_dir: Path) -> "SmallProject":
        """The same project on a copy of its data, for a test that changes them."""
        shutil.copytree(self.data_dir, data_dir)
        return replace(self, data_dir=data_dir)

    def pointer(self, table: str, key: str) -> Path:
        """The lake's file that says which version a partition has."""
        return self.data_dir / "lake" / table / "partitions" / f"{key}.json"

    def forget(self, table: str, key: str) -> None:
        """Makes a partition one that was never made."""
        self.pointer(table, key).unlink()

    def rows(self, spark: SparkSession, table: str, keys: Sequence[str]) -> pd.DataFrame:
        """The rows of partitions in one order, lists as tuples, so that frames compare."""
        frame = self.lake.read(spark, table, keys).toPandas()
        for column in frame.select_dtypes("object"):
            frame[column] = frame[column].map(_hashable)
        return frame.sort_values(list(frame.columns)).reset_index(drop=True)


def _hashable(value: Any) -> Any:
    match value:
        case dict():
            return tuple((key, _hashable(each)) for key, each in value.items())
        case np.ndarray() | list() | tuple():
            return tuple(map(_hashable, value))
        case _:
            return value


@dataclass(frozen=True)
class Chain:
    """The small project after its whole chain has run.

    Attributes:
        project: With the data that the chain made; a test that changes them copies them first.
        home: DAGSTER_HOME of the history.
        instance: The history.
        results: Job → what came of its run.
    """

    project: SmallProject
    home: Path
    instance: dg.DagsterInstance
    results: Mapping[str, dg.ExecuteInProcessResult]

    @contextmanager
    def history(self, home: Path) -> Iterator[dg.DagsterInstance]:
        """A copy of the history, for a test that goes on from it."""
        shutil.copytree(self.home, home)
        with dg.DagsterInstance.local_temp(str(home)) as instance:
            yield instance


def write_small_project(root: Path) -> SmallProject:
    """Writes the YAML files and the events; always the same ones."""
    events = root / "events"
    values = {
        "events": events,
        "max_late_hours": MAX_LATE_HOURS,
        "first_day": FIRST_DAY,
        "last_day": LAST_DAY,
        "window_days": WINDOW_DAYS,
        "horizon_days": HORIZON_DAYS,
        "as_of_days": f"[{', '.join(map(str, AS_OF_DAYS))}]",
    }
    audiences = root / "audiences"
    audiences.mkdir(parents=True)
    for name, text in {"fields": FIELDS, "car_buyers": CAR_BUYERS, "bike_buyers": BIKE_BUYERS}.items():
        (audiences / f"{name}.yaml").write_text(dedent(text).format(**values))
    rng = np.random.default_rng(5)
    accepted = _usual_events(rng)
    dirt = _dirty_events(rng, accepted)
    duplicates = accepted.sample(n=150, random_state=1)
    _write_by_arrival(pd.concat([_written_oddly(accepted), duplicates, *dirt.values()]), events)
    return SmallProject(
        audiences_dir=audiences,
        data_dir=root / "data",
        accepted=accepted.assign(day=accepted["event_time"].dt.date),
        raw_rows=len(accepted) + len(duplicates) + sum(map(len, dirt.values())),
        duplicates=len(duplicates),
        rejected={reason: len(rows) for reason, rows in dirt.items()},
    )


def write_as_of_days(project: SmallProject, audiences_dir: Path, days: Sequence[date]) -> SmallProject:
    """The same project, its audiences trained on other days."""
    audiences_dir.mkdir()
    for file in project.audiences_dir.iterdir():
        before, after = ("[" + ", ".join(map(str, each)) + "]" for each in (AS_OF_DAYS, days))
        (audiences_dir / file.name).write_text(file.read_text().replace(before, after))
    return replace(project, audiences_dir=audiences_dir)


def run_chain(project: SmallProject, home: Path) -> Chain:
    """Every job of the first day of use: past events, features, training, one day to delivery."""
    home.mkdir(parents=True, exist_ok=True)
    instance = dg.DagsterInstance.local_temp(str(home), overrides={"python_logs": PYTHON_LOGS})
    definitions = project.definitions()
    results = {"ingestion_job": run_days(definitions, instance, "ingestion_job", FIRST_DAY, LAST_DAY)}
    # The training makes the other one.
    results["features_job"] = run_days(definitions, instance, "features_job", AS_OF_DAYS[0], AS_OF_DAYS[0])
    results["training_job"] = run(definitions, instance, "training_job")
    results["daily_job"] = run_days(definitions, instance, "daily_job", SCORED_DAY, SCORED_DAY)
    return Chain(project, home, instance, results)


def run(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    tags: Mapping[str, str] | None = None,
    selection: Sequence[dg.AssetKey] | None = None,
) -> dg.ExecuteInProcessResult:
    """Runs a job to its end, whether it succeeds or not."""
    return definitions.resolve_job_def(job).execute_in_process(
        instance=instance, tags=tags, asset_selection=selection, raise_on_error=False
    )


def run_days(
    definitions: dg.Definitions, instance: dg.DagsterInstance, job: str, first: date, last: date
) -> dg.ExecuteInProcessResult:
    """Runs a daily job over a range of days in one run, as a backfill does."""
    return run(definitions, instance, job, _range(first, last))


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    day: date | None = None,
) -> dg.ExecuteInProcessResult:
    """Materializes assets named like "car_buyers/segments" with their checks, as the UI does on demand."""
    keys = [dg.AssetKey(asset.split("/")) for asset in assets]
    return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=keys, tags=_range(day, day) if day else None, raise_on_error=False
    )


def materialized(result: dg.ExecuteInProcessResult) -> set[str]:
    """The assets that a run materialized, named like "car_buyers/segments"."""
    events = result.get_asset_materialization_events()
    return {event.asset_key.to_user_string() for event in events if event.asset_key}


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """Check, named like "car_buyers/segments:every_probability_is_in_0_to_1" → whether it passed."""
    evaluations = result.get_asset_check_evaluations()
    return {f"{e.asset_key.to_user_string()}:{e.check_name}": e.passed for e in evaluations}


def failures(result: dg.ExecuteInProcessResult) -> str:
    """Why steps failed, causes included."""
    causes = []
    for event in result.all_events:
        error = event.step_failure_data.error if event.is_step_failure else None
        while error:
            causes.append(f"{event.step_key}: {error.message}")
            error = error.cause
    return "\n".join(causes)


def day_keys(first: date, last: date, prefix: str = "") -> list[str]:
    """Lake keys of all days from `first` to `last`."""
    days = (first + timedelta(days=ahead) for ahead in range((last - first).days + 1))
    return [f"{prefix}{day}" for day in days]


def _range(first: date, last: date) -> dict[str, str]:
    return {ASSET_PARTITION_RANGE_START_TAG: str(first), ASSET_PARTITION_RANGE_END_TAG: str(last)}


def _usual_events(rng: np.random.Generator) -> pd.DataFrame:
    """Distinct events, ids as the chain keeps them. Every second device likes cars, every third bikes."""
    days = (LAST_DAY - FIRST_DAY).days + 1
    device, day = (axis.ravel() for axis in np.meshgrid(np.arange(DEVICES), np.arange(days)))
    seen = rng.random(len(device)) < 0.7
    repeats = rng.integers(1, 7, seen.sum())
    device, day = np.repeat(device[seen], repeats), np.repeat(day[seen], repeats)
    rows, chance = len(device), rng.random(len(device))
    likes_cars, likes_bikes = device % 2 == 0, device % 3 == 0
    shop = np.where(
        likes_cars & (chance < 0.35), "cars", np.where(likes_bikes & (chance < 0.7), "bikes", "news")
    )
    product = np.where(
        rng.random(rows) < np.where(likes_cars, 0.06, 0.003),
        "car",
        np.where(rng.random(rows) < np.where(likes_bikes, 0.08, 0.003), "bike", ""),
    )
    seconds = rng.choice(24 * 3600, rows)
    start = pd.Timestamp(FIRST_DAY, tz=UTC)
    happened = start + pd.to_timedelta(day * 86_400 + seconds, unit="s")
    frame = pd.DataFrame(
        {
            "device_id": [f"{number:08x}-feed" for number in device + 1],
            "event_time": happened,
            "received_at": happened + pd.to_timedelta(rng.integers(0, 3_600, rows), unit="s"),
            "event_name": np.where(product == "", "open", "purchase"),
            "product": [bought or None for bought in product.tolist()],
            "app_package": [
                f"com.{kind}.app{number}" for kind, number in zip(shop, rng.integers(0, 4, rows), strict=True)
            ],
            "device_model": [f"sm-g{number % 7}" for number in device],
            "device_name": [("Anna's phone", "work", None)[number % 3] for number in device],
        }
    )
    return frame.drop_duplicates(["device_id", "event_time"]).reset_index(drop=True)


def _written_oddly(events: pd.DataFrame) -> pd.DataFrame:
    """The same events as a vendor writes some of them: ids in capitals, packages with a suffix."""
    odd = events.copy()
    odd.loc[::5, "device_id"] = odd.loc[::5, "device_id"].str.upper() + " "
    return odd


def _dirty_events(rng: np.random.Generator, usual: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Reason → rows to reject for it, and for no other."""
    rows = usual.sample(n=240, random_state=2).reset_index(drop=True)
    rows["event_time"] = rows["received_at"] = pd.Timestamp(
        datetime(2025, 3, 2, 12, tzinfo=UTC)
    ) + pd.to_timedelta(rng.integers(0, 12 * 86_400, len(rows)), unit="s")
    missing, zero, undated, future, late, emulator = (
        rows.iloc[part] for part in np.array_split(range(len(rows)), 6)
    )
    return {
        "missing_id": missing.assign(
            device_id=pd.Series([" ", ""] * (len(missing) // 2), missing.index).replace("", None)
        ),
        "zero_id": zero.assign(device_id="00000000-0000-0000-0000-000000000000"),
        "missing_time": undated.assign(event_time=undated["event_time"].mask(undated["event_time"].notna())),
        "future_event": future.assign(event_time=future["received_at"] + timedelta(days=400)),
        "late_event": late.assign(
            event_time=late["received_at"] - timedelta(hours=MAX_LATE_HOURS, seconds=1)
        ),
        "filter:not_emulator": emulator.assign(device_model="sdk_gphone_x86"),
    }


def _write_by_arrival(events: pd.DataFrame, directory: Path) -> None:
    for day, rows in events.groupby(events["received_at"].dt.date):
        folder = directory / f"day={day}"
        folder.mkdir(parents=True)
        shuffled = rows.sample(frac=1, random_state=3)
        pq.write_table(
            pa.Table.from_pandas(shuffled, SCHEMA, preserve_index=False), folder / "part-0.parquet"
        )

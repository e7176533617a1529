"""The small project whose daily chain runs under faults: its files, its events, and what must be delivered.

The events of the delivered day come in two variants: the world has delivered the one, OLD; the disturbed runs
read the other, NEW, so that what they deliver is told from what lay there before.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from benchmarks.chaos_chain_drivers import Answer, Driver
from pipelines.steps.errors import AudienceFactoryError
from pipelines.steps.targeting.deliveries import Manifest, count_rows, file_name, parse_manifest, sha256
from resources.lake import Lake
from resources.model_store import ModelStore

AUDIENCE = "car_buyers"
FIRST_DAY = date(2025, 3, 1)
AS_OF_DAYS = (date(2025, 3, 4), date(2025, 3, 5))
DAY = date(2025, 3, 7)
"""The delivered day; the day after it is the last one, for what arrives late."""
LAST_DAY = DAY + timedelta(days=1)
DEVICES = 400
SEGMENTS = ("top_fifth", "best_30", "best_100")
FORMATS = ("csv", "parquet")
TABLES = ("app_events", "daily_fields", "feature_tokens", "predictions", "segments")
OLD, NEW = "old", "new"

FIELDS = """
    events:
      path: {events}/day={{day}}
      id_column: device_id
      time_column: event_time
      arrival_column: received_at
      max_late_hours: 2
      first_day: {first_day}
      last_day: {last_day}
    window_days: 3
    fields:
      apps: {{column: app_package, kind: multi, normalizer: package, min_devices: 2}}
      device_model: {{column: device_model, kind: single, normalizer: device_model, min_devices: 2}}
    """
BUYERS = """
    label: {{event: {{event_name: purchase}}}}
    horizon_days: 2
    as_of_days: {as_of_days}
    training: {{max_epochs: 4, promotion_fraction: 0.2, test_fraction: 0.1}}
    segments:
      - {{name: top_fifth, top_fraction: 0.2}}
      - {{name: best_30, size: 30}}
      - {{name: best_100, size: 100}}
    deliver_to:
      - {{name: csv, type: folder, path: deliveries/csv, format: csv}}
      - {{name: parquet, type: folder, path: deliveries/parquet, format: parquet}}
    """
SCHEMA = pa.schema(
    [
        ("device_id", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("received_at", pa.timestamp("us", tz="UTC")),
        ("event_name", pa.string()),
        ("app_package", pa.string()),
        ("device_model", pa.string()),
    ]
)
Rows = tuple[tuple[str, float], ...]
"""Devices of a segment with their probabilities, in order of their id."""


@dataclass(frozen=True)
class Places:
    """The folders of a copy of the world: `events`, `variants`, `audiences`, `data` and Dagster's `home`."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def lake(self) -> Lake:
        return Lake(root=str(self.data / "lake"))

    @property
    def models(self) -> ModelStore:
        return ModelStore(root=str(self.data / "models"))

    def segment(self, segment: str, format: str) -> Path:
        """The folder of a segment's days at one destination."""
        return self.data / "deliveries" / format / AUDIENCE / segment

    def delivered(self) -> dict[str, Path]:
        """Segment and format, such as "best_30.csv" → the place of its delivery of the day."""
        return {
            f"{segment}.{format}": self.segment(segment, format) / str(DAY)
            for segment in SEGMENTS
            for format in FORMATS
        }

    def use_events(self, variant: str) -> None:
        """Lets the day's raw events be those of OLD or NEW, from one moment to the next."""
        file = self.root / "events" / f"day={DAY}" / "part-0.parquet"
        draft = self.root / f"events-{variant}"
        shutil.copy(self.root / "variants" / f"{variant}.parquet", draft)
        draft.replace(file)

    def copied_to(self, root: Path) -> "Places":
        copy = Places(root)
        shutil.copytree(self.root, root)
        write_files(copy)
        return copy

    def wire(self) -> dict[str, str]:
        """The places that a driver is told of."""
        return {name: str(self.root / name) for name in ("audiences", "data", "home")}


@dataclass(frozen=True)
class Delivered:
    """The content of a place.

    Attributes:
        manifest: It.
        rows: Of the file that it names.
    """

    manifest: Manifest
    rows: Rows


@dataclass(frozen=True)
class World:
    """The project after its first delivery, OLD.

    Attributes:
        places: It; never written to again.
        champion: The version that scored.
        expected: OLD or NEW → segment → what an undisturbed run delivers.
        steps: Step of `daily_job` → its usual seconds, in order.
    """

    places: Places
    champion: str
    expected: Mapping[str, Mapping[str, Rows]]
    steps: Mapping[str, float]

    @classmethod
    def made(cls, root: Path, driver: Driver, seed: int) -> "World":
        places = Places(root)
        write_world(places, seed)
        for job, first, last in [
            ("ingestion_job", FIRST_DAY, LAST_DAY),
            ("training_job", None, None),
            ("daily_job", DAY, DAY),
        ]:
            _require_success(driver.run(places.wire(), job=job, first=first, last=last), job)
        champion = places.models.current(AUDIENCE, "champion").version
        old = deliveries(places)
        other = places.copied_to(root.with_name("undisturbed"))
        other.use_events(NEW)
        answer = driver.run(other.wire(), job="daily_job", first=DAY, last=DAY)
        _require_success(answer, "daily_job")
        expected = {OLD: _by_segment(old), NEW: _by_segment(deliveries(other))}
        if same := [name for name in SEGMENTS if expected[OLD][name] == expected[NEW][name]]:
            raise SystemExit(f"both variants of the events give the same {', '.join(same)}")
        shutil.rmtree(other.root)
        return cls(places, champion, expected, answer.steps)

    def judge(self, segment: str, rows: Rows) -> str:
        """OLD, NEW, or how many rows are the ones' and the others'."""
        return judge(rows, {variant: content[segment] for variant, content in self.expected.items()})


def judge(rows: Rows, expected: Mapping[str, Rows]) -> str:
    """The name of what was expected, or what the rows are instead."""
    for name, content in expected.items():
        if rows == content:
            return name
    found = set(rows)
    parts = [
        f"{len(found & set(content))} of the {len(content)} {name}" for name, content in expected.items()
    ]
    return f"{len(rows)} rows, {' and '.join(parts)}"


def deliveries(places: Places) -> dict[str, Delivered]:
    """The content of the day's places, each whole.

    Raises:
        AudienceFactoryError: One does not.
    """
    return {name: read_delivered(place) for name, place in places.delivered().items()}


def read_delivered(place: Path) -> Delivered:
    """Follows the manifest to the file, as a receiver does, and believes neither.

    Raises:
        Broken: There is no manifest, or it or the file is not whole.
    """
    for _ in range(5):
        manifest = _read_manifest(place)
        file = place / manifest.file
        try:
            found = (sha256(file), count_rows(file), file.name)
            rows = read_rows(file)
        except FileNotFoundError:
            if _read_manifest(place) == manifest:
                raise Broken(f"{file} is missing, which its manifest names") from None
            continue  # between two looks another delivery took its place
        except (OSError, AudienceFactoryError, pa.ArrowException) as error:
            raise Broken(f"{file} cannot be read: {error}") from error
        if found != (manifest.sha256, manifest.rows, file_name(manifest.sha256, manifest.format)):
            raise Broken(f"{file} has {found[1]} rows and the hash {found[0][:12]}, its manifest says other")
        return Delivered(manifest, rows)
    raise Broken(f"{place} changes too often to be read")


class Broken(Exception):  # noqa: N818 (it describes a place, no fault of this program)
    """A delivery that is not whole."""


def _read_manifest(place: Path) -> Manifest:
    path = place / "manifest.json"
    try:
        return parse_manifest(path.read_bytes(), path)
    except (OSError, AudienceFactoryError) as error:
        raise Broken(f"{path}: {error}") from error


def read_rows(file: Path) -> Rows:
    """The devices of a delivered file, and their probabilities as single floats."""
    if file.suffix == ".parquet":
        table = pq.read_table(file)
    else:
        types = {"device_id": pa.string(), "probability": pa.float32()}
        table = pa_csv.read_csv(file, convert_options=pa_csv.ConvertOptions(column_types=types))
    return rows_of(table)


def rows_of(table: pa.Table) -> Rows:
    return tuple(sorted(zip(table["device_id"].to_pylist(), table["probability"].to_pylist(), strict=True)))


def segment_rows(files: list[Path], segment: str) -> Rows:
    """The devices that the lake's files hold of a segment."""
    table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    return rows_of(table.filter(pc.field("segment") == segment))


def _by_segment(found: Mapping[str, Delivered]) -> dict[str, Rows]:
    contents = {segment: {found[f"{segment}.{format}"].rows for format in FORMATS} for segment in SEGMENTS}
    if different := [segment for segment, rows in contents.items() if len(rows) != 1]:
        raise SystemExit(f"undisturbed, the formats of {', '.join(different)} differ")
    return {segment: rows.pop() for segment, rows in contents.items()}


def _require_success(answer: Answer, job: str) -> None:
    if not answer.success:
        raise SystemExit(f"{job} failed undisturbed: {answer}")


# --- the project's files ---------------------------------------------------------------------------


def write_world(places: Places, seed: int) -> None:
    """Writes the files and the events of the project; OLD is what the day's events are."""
    for name in ("variants", "home"):
        (places.root / name).mkdir(parents=True)
    write_files(places)
    # Telemetry off; all that Dagster keeps stays in its home.
    shutil.copy(Path(__file__).parent.parent / "dagster_instance.yaml", places.root / "home" / "dagster.yaml")
    usual, other = (_events(np.random.default_rng([seed, variant])) for variant in (0, 1))
    arrival = usual["received_at"].cast(pa.date32())
    for day in (FIRST_DAY + timedelta(days=ahead) for ahead in range((LAST_DAY - FIRST_DAY).days + 1)):
        folder = places.root / "events" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(usual.filter(pc.equal(arrival, pa.scalar(day))), folder / "part-0.parquet")
    for variant, events in {OLD: usual, NEW: other}.items():
        of_day = pc.equal(events["received_at"].cast(pa.date32()), pa.scalar(DAY))
        pq.write_table(events.filter(of_day), places.root / "variants" / f"{variant}.parquet")


def write_files(places: Places) -> None:
    """Writes what a user would: fields.yaml, which names the events' place, and the audience."""
    values = {
        "events": places.root / "events",
        "first_day": FIRST_DAY,
        "last_day": LAST_DAY,
        "as_of_days": f"[{', '.join(map(str, AS_OF_DAYS))}]",
    }
    audiences = places.root / "audiences"
    audiences.mkdir(exist_ok=True)
    for name, text in {"fields": FIELDS, AUDIENCE: BUYERS}.items():
        (audiences / f"{name}.yaml").write_text(dedent(text).format(**values))


def _events(rng: np.random.Generator) -> pa.Table:
    """Every second device likes cars, and buys one the more often; all is seen in what it opens."""
    days = (LAST_DAY - FIRST_DAY).days + 1
    device, day = (axis.ravel() for axis in np.meshgrid(np.arange(DEVICES), np.arange(days)))
    seen = rng.random(len(device)) < 0.7
    repeats = rng.integers(1, 5, seen.sum())
    device, day = np.repeat(device[seen], repeats), np.repeat(day[seen], repeats)
    rows, likes_cars = len(device), device % 2 == 0
    shop = np.where(likes_cars & (rng.random(rows) < 0.5), "cars", "news")
    start = int(datetime.combine(FIRST_DAY, datetime.min.time(), UTC).timestamp())
    happened = (start + day * 86_400 + rng.integers(0, 84_000, rows)) * 1_000_000
    purchase = rng.random(rows) < np.where(likes_cars, 0.15, 0.01)
    numbers = rng.integers(0, 6, rows)
    columns = [
        pa.array([f"device-{number:05}" for number in device]),
        pa.array(happened, pa.timestamp("us", tz="UTC")),
        pa.array(happened + rng.integers(0, 1_800, rows) * 1_000_000, pa.timestamp("us", tz="UTC")),
        pa.array(np.where(purchase, "purchase", "open")),
        pa.array([f"com.{kind}.app{number}" for kind, number in zip(shop, numbers, strict=True)]),
        pa.array([f"sm-g{number % 7}" for number in device]),
    ]
    return pa.table(columns, schema=SCHEMA)


def read_pointers(places: Places) -> dict[str, dict[str, Any]]:
    """Table and key → what the lake's pointer of that partition says, each parsed.

    Raises:
        Broken: One cannot be read.
    """
    pointers: dict[str, dict[str, Any]] = {}
    for table in TABLES:
        key = f"{AUDIENCE}/{DAY}" if table in ("predictions", "segments") else str(DAY)
        path = places.data / "lake" / table / "partitions" / f"{key}.json"
        try:
            pointers[f"{table}/{key}"] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise Broken(f"the pointer {os.path.relpath(path, places.data)}: {error}") from error
    return pointers
